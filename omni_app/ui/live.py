"""A reply while it is being made: it runs in its own task, whoever watches, and can be heard from the start."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path

from omni_app.conversation import AudioDelta, Event, Heard, Message, ReplyEnd, ReplyOptions, TextDelta
from omni_app.errors import OmniError
from omni_app.media.audio import WavWriter
from omni_app.meter import ReplyMeter

log = logging.getLogger(__name__)

MakeReply = Callable[[Sequence[Message], ReplyOptions], AsyncGenerator[Event, None]]
FORGET_AFTER_SECONDS = 120.0

BROKEN_NOTE = "Something broke while this answer was made; what it had said so far is kept. Please try again."
STOPPED_EARLY = "Stopped before the first word."
CUT_NOTE = "The answer reached its length limit. Raise “Longest answer” in the settings, or ask to go on."


class LiveReply:
    """One answer to one visitor. `run` is the unguessable name under which its speech can be heard."""

    def __init__(self, visitor: str, conversation: str, speech_file: Path) -> None:
        self.run = secrets.token_urlsafe(24)
        self.visitor = visitor
        self.conversation = conversation
        self.speech_file = speech_file
        self.text = ""
        self.heard = ""
        self.note = ""
        self.figures = ""
        self.done = False
        self.has_speech = False
        self.stopped = False
        self.spoken = False
        """Whether speech is wanted."""
        self.silent = False
        """Stopped by the visitor, who wants to hear no more of it."""
        self._speech: list[AudioDelta] = []
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(
        self,
        make: MakeReply,
        messages: Sequence[Message],
        options: ReplyOptions,
        finished: Callable[[LiveReply], None],
    ) -> None:
        """`finished` is called once, however the reply ends, before anybody is told that it is done."""
        self.spoken = options.speech
        self._meter, self._recording = ReplyMeter(), _Recording(self.speech_file)
        self._task = asyncio.create_task(self._work(make, messages, options), name=f"reply {self.run[:6]}")
        self._task.add_done_callback(lambda task: self._end(task, finished))

    async def stop(self) -> None:
        """Stop text and speech now; returns when the engine has let go, and what it said is kept. Safe at any time, and
        twice."""
        self.stopped = self.silent = True
        self._notify()
        if self._task is not None:
            self._task.cancel()
            while not self.done:  # a task that has just ended is told of a little later
                await self._changed.wait()

    def abandon(self) -> None:
        """Stop without waiting, for a visitor who has left."""
        self.stopped = True
        if self._task is not None:
            self._task.cancel()

    async def wait(self, at_most: float) -> None:
        """Until something is new, or `at_most` seconds have passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most):
                await self._changed.wait()

    async def speech(self) -> AsyncIterator[AudioDelta]:
        """The speech from its beginning, each piece as soon as it exists; ends with the reply or its stop."""
        position = 0
        while not self.silent:
            while position < len(self._speech) and not self.silent:
                yield self._speech[position]
                position += 1
            if self.done:
                return
            changed = self._changed
            if position == len(self._speech):
                await changed.wait()

    async def _work(self, make: MakeReply, messages: Sequence[Message], options: ReplyOptions) -> None:
        async with contextlib.aclosing(make(messages, options)) as events:
            async for event in events:
                self._meter.observe(event)
                self._take(event)

    def _end(self, task: asyncio.Task[None], finished: Callable[[LiveReply], None]) -> None:
        if task.cancelled():
            self.stopped = True
        elif isinstance(error := task.exception(), OmniError):
            self.note = str(error)
        elif error is not None:
            log.error("a reply failed", exc_info=error)
            self.note = BROKEN_NOTE
        self._recording.close()
        self.has_speech = self.has_speech and not self._recording.problem
        self.note = self.note or self._recording.problem
        self.figures = self._meter.line()
        self.done = True
        try:
            finished(self)
        finally:
            self._notify()

    def _take(self, event: Event) -> None:
        match event:
            case TextDelta(text):
                self.text += text
            case AudioDelta():
                self._speech.append(event)
                self.has_speech = self._recording.add(event)
            case Heard(text):
                self.heard = text
            case ReplyEnd("length"):
                self.note = CUT_NOTE
            case _:
                return
        self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class _Recording:
    """The WAV file that stays in the message. A full disk costs the file, never the answer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: WavWriter | None = None
        self.problem = ""

    def add(self, piece: AudioDelta) -> bool:
        if self.problem:
            return False
        try:
            if self._writer is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._writer = WavWriter(self._path, piece.sample_rate)
            self._writer.write(piece.pcm)
        except OSError as error:
            self.problem = f"The sound of this answer was not kept: {error.strerror}."
            log.error("speech file %s: %s", self._path.name, error)
        return not self.problem

    def close(self) -> None:
        if self._writer is None:
            return
        try:
            self._writer.close()
        except OSError as error:
            self.problem = f"The sound of this answer was not kept: {error.strerror}."
        if self.problem:
            self._path.unlink(missing_ok=True)


class Replies:
    """The replies that run or have just ended, by run name and by conversation."""

    def __init__(self) -> None:
        self._by_run: dict[str, LiveReply] = {}
        self._by_conversation: dict[tuple[str, str], LiveReply] = {}

    def add(self, reply: LiveReply) -> None:
        self._by_run[reply.run] = reply
        self._by_conversation[reply.visitor, reply.conversation] = reply

    def heard_by(self, visitor: str, run: str) -> LiveReply | None:
        """The reply of that run when it is this visitor's; for anybody else it does not exist."""
        reply = self._by_run.get(run)
        return reply if reply is not None and reply.visitor == visitor else None

    def current(self, visitor: str, conversation: str) -> LiveReply | None:
        """The reply that is being made in that conversation, or None."""
        reply = self._by_conversation.get((visitor, conversation))
        return reply if reply is not None and not reply.done else None

    def latest(self, visitor: str, conversation: str) -> str:
        """The run of the last reply there, if it is still kept and may be heard; else nothing."""
        its = [one for one in self._by_run.values() if (one.visitor, one.conversation) == (visitor, conversation)]
        return its[-1].run if its and its[-1].spoken and not its[-1].silent else ""

    def of(self, visitor: str) -> list[LiveReply]:
        return [reply for (owner, _), reply in self._by_conversation.items() if owner == visitor and not reply.done]

    async def stop(self) -> None:
        """Stop all of them; returns when what each had said is kept."""
        await asyncio.gather(*(reply.stop() for reply in self._by_run.values() if not reply.done))

    def release(self, reply: LiveReply) -> None:
        """Keep the speech of an ended reply for late listeners a while, then forget it."""
        if self._by_conversation.get((reply.visitor, reply.conversation)) is reply:
            del self._by_conversation[reply.visitor, reply.conversation]
        asyncio.get_running_loop().call_later(FORGET_AFTER_SECONDS, self._by_run.pop, reply.run, None)
