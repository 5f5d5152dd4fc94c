"""The first requests, asked of a scripted engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import pytest

from omni_app.conversation import Event, Message, ReplyOptions, TextDelta
from omni_app.errors import EngineFailed
from omni_app.server.warmup import warm_up
from tests.scripted import ScriptedEngine

pytestmark = pytest.mark.anyio


class Counting(ScriptedEngine):
    """Notes how many answers were made at one time. From the crowd on it is as `crowd` says."""

    def __init__(self, crowd: str = "") -> None:
        super().__init__(word_seconds=0.001)
        self.most = 0
        self.crowd = crowd

    async def reply(self, messages: Sequence[Message], options: ReplyOptions) -> AsyncGenerator[Event, None]:
        async with aclosing(super().reply(messages, options)) as events:
            async for event in events:
                self.most = max(self.most, self.working)
                if "Count" in messages[0].text and self.crowd == "hangs":
                    await asyncio.Event().wait()
                if "Count" in messages[0].text and self.crowd == "fails":
                    raise EngineFailed("The talker fell over.")
                yield event


@pytest.mark.parametrize(
    ("users", "crowds"), [(1, []), (8, ["2 users at once"]), (32, ["2 users at once", "16 users at once"])]
)
async def test_crowds_as_large_as_may_come(users: int, crowds: list[str]) -> None:
    engine = Counting()
    steps = [step async for step in warm_up(engine, speech=True, users=users)]
    assert steps == ["text and speech", "picture", "sound", *crowds]
    assert engine.most == int(crowds[-1].split()[0] if crowds else 1)
    capped = [options.extra for _, options in engine.asked if options.speech]
    assert all(extra["sampling_params_list"][1]["max_tokens"] == 100 for extra in capped)  # type: ignore[index]


async def test_a_crowd_that_takes_too_long_is_left_out() -> None:
    engine = Counting("hangs")
    steps = [step async for step in warm_up(engine, speech=True, users=16, crowd_s=0.05)]
    assert steps[-1] == "2 users at once took longer than 0 s, so that is left out"
    assert engine.working == 0


async def test_a_crowd_that_fails_is_told_as_one_error() -> None:
    engine = Counting("fails")
    with pytest.raises(EngineFailed, match="fell over"):
        [step async for step in warm_up(engine, speech=True, users=16)]
    assert engine.working == 0


async def test_an_answer_without_sound_is_no_warm_up() -> None:
    class Mute(ScriptedEngine):
        async def reply(self, messages: Sequence[Message], options: ReplyOptions) -> AsyncGenerator[Event, None]:
            yield TextDelta("hello")

    with pytest.raises(EngineFailed, match="text, but no speech"):
        [step async for step in warm_up(Mute(), speech=True)]
