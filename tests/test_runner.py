"""One engine, started in the background, tried again after a failure, never overfilled."""

from __future__ import annotations

import asyncio

import pytest

from omni_app.conversation import Message, ReplyEnd, ReplyOptions, TextDelta
from omni_app.errors import EngineAtCapacity, EngineUnavailable
from omni_app.runner import Runner
from tests.scripted import ScriptedEngine

pytestmark = pytest.mark.anyio
HELLO = [Message.of("user", "hello")]
QUIET = ReplyOptions(speech=False)


class LateEngine(ScriptedEngine):
    """Cannot start before `tries` have been made."""

    def __init__(self, tries: int) -> None:
        super().__init__(word_seconds=0.01)
        self.tries = tries

    async def start(self) -> None:
        self.tries -= 1
        if self.tries >= 0:
            raise EngineUnavailable("Nobody answers there yet.")
        await super().start()


async def answer(runner: Runner) -> str:
    return "".join([event.text async for event in runner.reply(HELLO, QUIET) if isinstance(event, TextDelta)])


async def test_reply_waits_for_the_start() -> None:
    runner = Runner(ScriptedEngine(0.01), "", 1)
    runner.start()
    assert await answer(runner) == "echo: hello "
    await runner.close()


async def test_not_started_is_said() -> None:
    with pytest.raises(EngineUnavailable):
        await answer(Runner(ScriptedEngine(), "", 1))


async def test_failed_start_is_shown_and_tried_again_by_the_next_reply() -> None:
    runner = Runner(LateEngine(2), "", 1)
    runner.start()
    for _ in range(2):
        with pytest.raises(EngineUnavailable, match="Nobody answers"):
            await answer(runner)
        assert not runner.status().ready
        assert runner.status().why == "Nobody answers there yet."
    assert await answer(runner) == "echo: hello "
    assert runner.status().ready
    await runner.close()


async def test_a_reply_too_many_is_refused_and_the_place_is_given_back() -> None:
    runner = Runner(ScriptedEngine(), "", 1)
    runner.start()
    first = runner.reply(HELLO, QUIET)
    await anext(first)
    with pytest.raises(EngineAtCapacity, match="1 answers"):
        await answer(runner)
    await first.aclose()
    assert runner.running == 0
    assert await answer(runner) == "echo: hello "
    await runner.close()


async def test_closing_the_reply_ends_the_engines_work() -> None:
    engine = ScriptedEngine()
    runner = Runner(engine, "", 1)
    runner.start()
    events = runner.reply([Message.of("user", "slow long story")], QUIET)
    await anext(events)
    await events.aclose()
    assert engine.working == 0
    await runner.close()
    await asyncio.sleep(0)


async def test_the_last_event_is_the_end() -> None:
    runner = Runner(ScriptedEngine(0.01), "", 1)
    runner.start()
    assert [event async for event in runner.reply(HELLO, QUIET)][-1] == ReplyEnd("stop")
    await runner.close()


async def test_another_engine_takes_over_and_the_old_one_ends_what_it_began() -> None:
    old, new = ScriptedEngine(0.01), ScriptedEngine(0.01)
    runner = Runner(old, "old", 2)
    runner.start()
    events = runner.reply([Message.of("user", "a b c")], QUIET)
    first = await anext(events)
    runner.use(new, "new")
    assert await answer(runner) == "echo: hello "
    assert (len(new.asked), runner.chosen_because) == (1, "new")
    assert old.started
    text = [first, *[event async for event in events]]
    assert "".join(event.text for event in text if isinstance(event, TextDelta)) == "echo: a b c "
    await asyncio.wait_for(old.closed.wait(), 5)
    await runner.close()


class SlowlyClosing(ScriptedEngine):
    async def close(self) -> None:
        await asyncio.sleep(0.01)
        await super().close()


async def test_closing_waits_for_an_engine_that_was_about_to_leave() -> None:
    old = SlowlyClosing()
    runner = Runner(old, "", 1)
    runner.start()
    events = runner.reply([Message.of("user", "slow long story")], QUIET)
    await anext(events)
    runner.use(ScriptedEngine(), "")
    await asyncio.sleep(0)
    await runner.close()
    assert old.closed.is_set()
    await events.aclose()
