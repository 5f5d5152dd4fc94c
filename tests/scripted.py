"""A ScriptedEngine for tests of what surrounds an engine: it says what its script tells it, at the pace it tells."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from typing import Any

from omni_app.conversation import AudioDelta, Event, Heard, Message, ReplyEnd, ReplyOptions, ReplyStats, TextDelta
from omni_app.engines.base import EngineStatus
from omni_app.errors import BadRequest, EngineFailed

RATE = 24_000


def tone(seconds: float, start: float = 0.0, hertz: float = 440.0) -> bytes:
    """A sine of continuous phase, so that any gap between pieces can be measured."""
    first, count = round(start * RATE), round(seconds * RATE)
    samples = (int(9000 * math.sin(2 * math.pi * hertz * (first + n) / RATE)) for n in range(count))
    return struct.pack(f"<{count}h", *samples)


class ScriptedEngine:
    """Answers "echo: <text>" word by word with 0.2 s of tone a word. Words in the question steer it:

    `long` makes 60 words, `slow` waits 0.3 s a word, `fail` breaks in the middle, `markup` answers with HTML.
    """

    def __init__(self, word_seconds: float = 0.05) -> None:
        self.word_seconds = word_seconds
        self.asked: list[tuple[list[Message], ReplyOptions]] = []
        self.working = 0
        self.started = False
        self.closed = asyncio.Event()

    async def start(self) -> None:
        self.started = True

    def status(self) -> EngineStatus:
        kinds = frozenset({"text", "image", "audio", "video"})
        return EngineStatus("scripted", "echo", self.started, "It repeats what it is told.", ("low", "high"), kinds)

    async def reply(self, messages: Sequence[Message], options: ReplyOptions) -> AsyncGenerator[Event, None]:
        if options.voice not in (None, "low", "high"):
            raise BadRequest(f"There is no voice {options.voice}; choose low or high.")
        self.asked.append((list(messages), options))
        self.working += 1
        try:
            async for event in self._events(messages[-1], options):
                yield event
        finally:
            self.working -= 1

    async def _events(self, message: Message, options: ReplyOptions) -> AsyncGenerator[Event, None]:
        if any(part.kind == "audio" for part in message.media):
            yield Heard("what the recording said")
        words = _words(message)
        for number, word in enumerate(words):
            if "fail" in words and number == 2:
                raise EngineFailed("The engine stopped in the middle of its answer. Please try again.")
            await asyncio.sleep(0.3 if "slow" in words else self.word_seconds)
            yield TextDelta(word + " ")
            if options.speech:
                yield AudioDelta(tone(0.2, number * 0.2), RATE)
        yield ReplyStats(prompt_tokens=5, completion_tokens=len(words))
        yield ReplyEnd("length" if options.max_tokens and len(words) > options.max_tokens else "stop")

    async def close(self) -> None:
        self.started = False
        self.closed.set()


def _words(message: Message) -> list[str]:
    if "markup" in message.text:
        return ["<script>window.hacked=1</script>", "<b>bold</b>", "<img src=x onerror=window.hacked=1>", "`<i>`"]
    words = ["echo:", *message.text.split(), *(f"[{part.kind}]" for part in message.media)]
    return words + ["word"] * 60 if "long" in words else words


async def played(script: Iterable[Any], left: asyncio.Event) -> AsyncIterator[bytes]:
    """A streamed answer: bytes are sent, an asyncio.Event is waited for, an Exception breaks the connection. `left` is
    set when nobody listens any more."""
    try:
        for piece in script:
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, asyncio.Event):
                await piece.wait()
            else:
                yield piece
    finally:
        left.set()
