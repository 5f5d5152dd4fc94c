"""What is done to a conversation, one thing at a time: stop what is being answered, change the turns, answer anew."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from omni_app.conversation import Event, Message, Part, ReplyOptions
from omni_app.engines.base import check_kinds, named_kinds
from omni_app.runner import Runner
from omni_app.turnstile import Turnstile
from omni_app.ui.live import STOPPED_EARLY, LiveReply, Replies
from omni_app.ui.store import Conversation, Store, Turn

Change = Callable[[list[Turn]], None]
STOPPED = "stopped"
"""Before the figures of an answer that was ended before its end: by Stop, a new question, or a visitor who left."""


class Dialogues:
    """Keeps question and answer in order, however fast the visitor is and from however many tabs."""

    def __init__(self, runner: Runner, store: Store, replies: Replies, turnstile: Turnstile | None = None) -> None:
        self._runner = runner
        self._turnstile = turnstile or Turnstile()
        self._store = store
        self._replies = replies
        self._locks = WeakValueDictionary[tuple[str, str], asyncio.Lock]()
        """Each lives as long as somebody holds it or waits for it."""

    @property
    def speaks(self) -> bool:
        """False when the engine, which is ready, has no voice."""
        status = self._runner.status()
        return status.speaks or not status.ready

    @property
    def abilities(self) -> str:
        """What the engine takes and gives, as a sentence; empty while it is not ready, or rests."""
        status = self._runner.engine.status()
        speech = "speaks" if status.speaks else "does not speak"
        return f"it takes {named_kinds(status.modalities)}, and {speech}." if status.ready else ""

    def check(self, *parts: Part) -> None:
        """Raises BadRequest for a file of a kind that the engine, which is ready, does not take."""
        status = self._runner.status()
        if status.ready:
            check_kinds(parts, status.modalities)

    @asynccontextmanager
    async def alone(self, conversation: Conversation) -> AsyncIterator[None]:
        """Nothing else changes this conversation meanwhile, and no answer is being made in it."""
        lock = self._locks.setdefault((conversation.visitor, conversation.id), asyncio.Lock())
        async with lock:
            await self.stop(conversation)
            yield

    async def stop(self, conversation: Conversation) -> None:
        """Returns when the engine has let go of the answer; it stays, as far as it had come."""
        if (reply := self._replies.current(conversation.visitor, conversation.id)) is not None:
            await reply.stop()

    async def answer(
        self, conversation: Conversation, change: Change, options: ReplyOptions, system_prompt: str, person: str = ""
    ) -> tuple[LiveReply, str]:
        """Change the turns and start the answer to them; returns it, and what went wrong with keeping them.

        person: the name of who is signed in, who is counted as one in every browser.
        """
        async with self.alone(conversation):
            problem = self.change(conversation, change)
            speech_file = conversation.media_folder / f"answer-{secrets.token_hex(8)}.wav"
            reply = LiveReply(conversation.visitor, conversation.id, speech_file)
            self._replies.add(reply)
            messages = conversation.messages(system_prompt)

            def make(messages: Sequence[Message], options: ReplyOptions) -> AsyncGenerator[Event, None]:
                return self._turnstile.through(
                    f"@{person}" if person else conversation.visitor, self._runner.reply(messages, options)
                )

            reply.start(make, messages, options, lambda ended: self._keep(conversation, ended))
            return reply, problem

    def change(self, conversation: Conversation, change: Change) -> str:
        """Change the turns and keep them; the files of dropped turns go. Returns what went wrong, or nothing."""
        before = {path for turn in conversation.turns for path in turn.files()}
        change(conversation.turns)
        for path in before - {path for turn in conversation.turns for path in turn.files()}:
            path.unlink(missing_ok=True)
        return self._store.save(conversation)

    def _keep(self, conversation: Conversation, reply: LiveReply) -> None:
        """The reply has ended, watched or not: what it said becomes a turn."""
        if reply.heard and conversation.turns:
            conversation.turns[-1].heard = reply.heard
        note = reply.note or (STOPPED_EARLY if reply.stopped and not reply.text else "")
        speech = reply.speech_file if reply.has_speech else None
        cut_short = STOPPED if reply.stopped and reply.text else ""
        figures = " · ".join(filter(None, (cut_short, reply.figures)))
        conversation.turns.append(Turn("assistant", reply.text, speech=speech, figures=figures, note=note))
        self._store.save(conversation)
        self._replies.release(reply)


def without_last_answer(turns: list[Turn]) -> None:
    while turns and turns[-1].role == "assistant":
        turns.pop()


def without_last_question(turns: list[Turn]) -> None:
    turns.pop()
