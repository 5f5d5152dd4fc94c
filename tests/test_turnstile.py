"""One visitor asks only for so much; the others are not touched by it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import HTTPConnection

from omni_app import api
from omni_app.access import address_of
from omni_app.conversation import Event, Message, ReplyOptions, TextDelta
from omni_app.engines.base import EngineStatus
from omni_app.media import Limits
from omni_app.runner import Runner
from omni_app.settings import Settings
from omni_app.turnstile import TooMany, Turnstile
from tests.conftest import Serve
from tests.scripted import ScriptedEngine

pytestmark = pytest.mark.anyio


async def words() -> AsyncGenerator[Event, None]:
    yield TextDelta("one ")
    yield TextDelta("two ")


async def heard(events: AsyncIterator[Event]) -> int:
    return len([event async for event in events])


async def test_a_visitor_gets_so_many_answers_at_a_time_and_others_theirs() -> None:
    turnstile = Turnstile(at_once=1)
    async with aclosing(turnstile.through("ann", words())) as first:
        assert await anext(first) == TextDelta("one ")
        with pytest.raises(TooMany, match="visitor-replies"):
            await anext(turnstile.through("ann", words()))
        assert await heard(turnstile.through("bob", words())) == 2
    assert await heard(turnstile.through("ann", words())) == 2


async def test_a_visitor_gets_so_many_questions_a_minute_and_is_told_when_to_come_back() -> None:
    now = [0.0]
    turnstile = Turnstile(per_minute=2, clock=lambda: now[0])
    for now[0] in (0.0, 10.0):
        await heard(turnstile.through("ann", words()))
    now[0] = 20.0
    with pytest.raises(TooMany, match="in 40 seconds") as told:
        await anext(turnstile.through("ann", words()))
    assert told.value.wait_seconds == 40.0
    assert await heard(turnstile.through("bob", words())) == 2
    now[0] = 60.0
    assert await heard(turnstile.through("ann", words())) == 2


async def test_many_strangers_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni_app.turnstile.KNOWN_AT_MOST", 10)
    now = [0.0]
    turnstile = Turnstile(at_once=1, per_minute=5, clock=lambda: now[0])
    for number in range(50):
        now[0] += 30.0
        await heard(turnstile.through(str(number), words()))
    assert len(turnstile._asked) <= 10
    assert not turnstile._running


@pytest.mark.parametrize(
    ("forwarded", "proxies", "address"),
    [
        ((), 0, "10.0.0.9"),
        (("1.1.1.1",), 0, "10.0.0.9"),
        (("6.6.6.6, 1.1.1.1",), 1, "1.1.1.1"),
        (("6.6.6.6", "1.1.1.1, 2.2.2.2"), 2, "1.1.1.1"),
        ((), 1, "10.0.0.9"),
    ],
)
def test_only_as_many_proxies_are_believed_as_there_are(forwarded: tuple[str, ...], proxies: int, address: str) -> None:
    headers = [(b"x-forwarded-for", line.encode()) for line in forwarded]
    asked = HTTPConnection({"type": "http", "headers": headers, "client": ("10.0.0.9", 50000)})
    assert address_of(asked, proxies) == address


async def test_the_api_refuses_with_429_and_says_when_to_try_again(serve: Serve, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, visitor_per_minute=1, proxies=1)
    runner = Runner(ScriptedEngine(0.0), "", 4)
    runner.start()
    url = await serve(Starlette(routes=api.routes(runner, settings, Limits.of(settings))))
    question = {"messages": [{"role": "user", "content": "hello"}], "modalities": ["text"]}
    async with httpx.AsyncClient(base_url=url) as client:
        answers = [
            await client.post("/v1/chat/completions", json=question, headers={"x-forwarded-for": address})
            for address in ("1.1.1.1", "1.1.1.1", "2.2.2.2")
        ]
    assert [answer.status_code for answer in answers] == [200, 429, 200]
    assert 0 < int(answers[1].headers["retry-after"]) <= 60
    assert "visitor-per-minute" in answers[1].json()["error"]["message"]
    await runner.close()


class Mute(ScriptedEngine):
    """Does not know before its start that it has a voice."""

    def status(self) -> EngineStatus:
        known = super().status()
        return known if self.started else replace(known, speaks=False, voices=())


async def test_a_resting_engine_is_ready_and_wakes_with_the_next_question() -> None:
    first, second = Mute(0.0), Mute(0.0)
    runner = Runner(first, "", 4)
    runner.start()
    asked = [Message.of("user", "hello")]
    await heard(runner.reply(asked, ReplyOptions(speech=False)))
    assert runner.idle_seconds > 0
    runner.rest(second, "")
    await first.closed.wait()
    assert not second.started
    assert runner.status().ready
    assert (runner.status().speaks, runner.status().voices) == (True, ("low", "high"))
    assert "rests" in runner.status().why
    assert runner.idle_seconds == 0
    assert await heard(runner.reply(asked, ReplyOptions(speech=False))) > 0
    assert second.started
    assert "rests" not in runner.status().why
    await runner.close()
