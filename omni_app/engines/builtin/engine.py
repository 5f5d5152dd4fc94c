"""The engine that runs anywhere: small real models on the processor, one for each sense."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor

from omni_app.conversation import Event, Kind, Message, ReplyOptions
from omni_app.engines.base import EngineStatus, check_numbers
from omni_app.engines.builtin.answer import Answer
from omni_app.engines.builtin.assets import language_model
from omni_app.engines.builtin.memory import return_large_blocks
from omni_app.engines.builtin.outbox import Outbox
from omni_app.engines.builtin.parts import Parts, Speech, real_parts
from omni_app.engines.builtin.senses import Senses
from omni_app.errors import BadRequest, EngineUnavailable, OmniError
from omni_app.settings import Settings

log = logging.getLogger(__name__)

_MODALITIES: frozenset[Kind] = frozenset({"text", "image", "audio", "video"})
_MODEST = "Small models on this machine's processor answer: quick, private, and often wrong."


class BuiltinEngine:
    def __init__(self, settings: Settings, parts: Parts | None = None) -> None:
        self._settings = settings
        parts = parts or real_parts(settings)
        self._mind = parts.mind()
        self._voice = parts.voice()
        self._senses = Senses(parts, self._note)
        self._workers = ThreadPoolExecutor(settings.max_replies, thread_name_prefix="builtin-reply")
        self._replies: set[Outbox] = set()
        self._model = settings.builtin_model or "SmolLM2-135M-Instruct"
        self._ready = self._speaks = self._closed = False
        self._why = "The models are not loaded yet."

    async def start(self) -> None:
        await asyncio.to_thread(self._load)
        # Only now, so that the first answer is not kept waiting by it.
        threading.Thread(target=self._warm_up, name="builtin-warm-up", daemon=True).start()

    def _load(self) -> None:
        """One after the other: the voice measures how fast this machine is, and must not be disturbed."""
        return_large_blocks()
        self._note("Looking for the language model.")
        path = language_model(self._settings, self._note)
        self._model = path.stem
        self._note(f"Loading the language model {path.name}.")
        self._mind.load(path)
        self._load_voice()
        if self._closed:
            self._release()
            raise EngineUnavailable("The engine was closed while it was loading.")
        self._ready = True
        log.info("%s", self._why)

    def _load_voice(self) -> None:
        """Answers can be read without it, so a voice that cannot be had is only a limit."""
        self._note("Loading the voice.")
        try:
            self._voice.load(self._note)
        except OmniError as error:
            log.warning("no speech: %s", error)
            self._why = f"{_MODEST} Answers are not spoken: {error}"
            return
        self._speaks = True
        self._why = f"{_MODEST} {self._voice.reason}"

    def _warm_up(self) -> None:
        try:
            self._senses.warm_up()
        except OmniError as error:
            log.warning("listening is not possible yet: %s", error)

    def _note(self, line: str) -> None:
        log.info("%s", line)
        if not self._ready:
            self._why = line

    async def reply(self, messages: Sequence[Message], options: ReplyOptions) -> AsyncGenerator[Event, None]:
        if not self._ready or self._closed:
            raise EngineUnavailable(self._why)
        check_numbers(options)
        outbox = Outbox()
        answer = Answer(self._mind, self._senses, outbox, self._speech(options, outbox), messages, options)
        self._replies.add(outbox)
        work = asyncio.get_running_loop().run_in_executor(self._workers, answer.run)
        try:
            async for event in outbox.events():
                yield event
        finally:
            outbox.cancelled.set()
            self._replies.discard(outbox)
            await asyncio.wait([work])

    def _speech(self, options: ReplyOptions, outbox: Outbox) -> Speech | None:
        voices = self._voice.voices
        if options.voice is not None and options.voice not in voices:
            raise BadRequest(f"There is no voice called {options.voice[:50]}; choose one of {', '.join(voices)}.")
        if not (options.speech and self._speaks):
            return None
        return self._voice.utterance(options.voice, outbox.cancelled.is_set)

    def status(self) -> EngineStatus:
        voices = self._voice.voices if self._speaks else ()
        return EngineStatus("builtin", self._model, self._ready, self._why, voices, _MODALITIES, self._speaks)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for outbox in self._replies:
            outbox.cancelled.set()
        self._why = "The engine has been closed."
        if self._ready:
            self._ready = False
            await asyncio.to_thread(self._release)

    def _release(self) -> None:
        self._workers.shutdown()
        self._mind.close()
        self._voice.close()
        self._senses.close()
