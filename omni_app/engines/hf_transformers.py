"""The engine that runs Qwen3-Omni with transformers in this process: the baseline, and BitsAndBytes 4-bit.

One reply at a time; others wait their turn. torch and what builds on it are imported when the engine starts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from importlib.util import find_spec
from typing import TYPE_CHECKING

from omni_app.conversation import Event, Kind, Message, ReplyOptions
from omni_app.engines.base import EngineStatus, check_numbers
from omni_app.engines.builtin.outbox import Outbox
from omni_app.engines.hf import folder, sizes
from omni_app.errors import BadRequest, EngineUnavailable
from omni_app.settings import Settings

if TYPE_CHECKING:
    from omni_app.engines.hf.answer import Watch
    from omni_app.engines.hf.loading import Loaded

log = logging.getLogger(__name__)

NAME = "transformers"
_MODALITIES: frozenset[Kind] = frozenset({"text", "image", "audio", "video"})
_PACKAGES = ("torch", "transformers", "accelerate")
_FOUR_BIT_PACKAGES = ("bitsandbytes",)


class TransformersEngine:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._precision = settings.transformers_precision
        self._model = settings.transformers_model.rstrip("/").rpartition("/")[2]
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="transformers")
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._outbox: Outbox | None = None
        self._loaded: Loaded | None = None
        self._watch: Watch | None = None
        self._why = "The model is not loaded yet."
        self._closed = False

    async def start(self) -> None:
        _check_packages(self._precision)
        await asyncio.get_running_loop().run_in_executor(self._worker, self._load)
        if self._closed:
            self._release()
            raise EngineUnavailable("The engine was closed while it was loading.")

    def _load(self) -> None:
        from omni_app.engines.hf.answer import Watch
        from omni_app.engines.hf.loading import load

        settings = self._settings
        found = folder.find(settings.transformers_model, self._note)
        self._loaded = load(found, self._precision, settings.transformers_talker, self._note)
        self._watch = Watch(self._loaded.model)
        self._model = found.name
        self._why = _facts(self._loaded, self._precision)
        log.info("%s", self._why)

    def _note(self, line: str) -> None:
        log.info("%s", line)
        self._why = line

    async def reply(self, messages: Sequence[Message], options: ReplyOptions) -> AsyncGenerator[Event, None]:
        loaded = self._ready()
        _check(messages, options, loaded.voices)
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        try:
            async with aclosing(self._answer(messages, options)) as events:
                async for event in events:
                    yield event
        finally:
            self._turn.release()

    async def _answer(self, messages: Sequence[Message], options: ReplyOptions) -> AsyncGenerator[Event, None]:
        from omni_app.engines.hf.answer import Answer

        loaded, watch, outbox = self._ready(), self._watch, Outbox()
        assert watch is not None
        self._outbox = outbox
        answer = Answer(loaded, watch, outbox, messages, options)
        work = asyncio.get_running_loop().run_in_executor(self._worker, answer.run)
        try:
            async for event in outbox.events():
                yield event
        finally:
            outbox.cancelled.set()
            self._outbox = None
            await asyncio.wait([work])

    def _ready(self) -> Loaded:
        if self._loaded is None or self._closed:
            raise EngineUnavailable(self._why)
        return self._loaded

    def status(self) -> EngineStatus:
        voices = self._loaded.voices if self._loaded else ()
        waiting = ""
        if self._waiting:
            waiting = f" One answer is made at a time; {self._waiting} {'waits' if self._waiting == 1 else 'wait'}."
        return EngineStatus(
            NAME, self._model, self._loaded is not None and not self._closed, self._why + waiting, voices, _MODALITIES,
            speaks=bool(voices) if self._loaded else self._settings.transformers_talker,
        )  # fmt: skip

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._why = "The engine has been closed."
        if self._outbox is not None:
            self._outbox.cancelled.set()
        self._worker.shutdown(wait=False)
        if self._loaded is not None:
            await asyncio.to_thread(self._worker.shutdown)
            self._release()

    def _release(self) -> None:
        self._loaded = self._watch = None


def _facts(loaded: Loaded, precision: str) -> str:
    speech = "speech follows when the whole text is there" if loaded.voices else "the voice is left out"
    return (
        f"Transformers in this process, {precision} on {loaded.device}: {sizes.in_words(loaded.before, loaded.after)}. "
        f"Text comes token by token, {speech}; one answer at a time."
    )


def _check_packages(precision: str) -> None:
    needed = _PACKAGES + (_FOUR_BIT_PACKAGES if precision in ("nf4", "fp4") else ())
    if absent := [name for name in needed if find_spec(name) is None]:
        raise EngineUnavailable(
            f"The transformers engine needs {', '.join(absent)}, which this environment does not have: build the one "
            "that does with `make transformers-env`, and start the app there with `make run-transformers`."
        )


def _check(messages: Sequence[Message], options: ReplyOptions, voices: Sequence[str]) -> None:
    """Raises BadRequest."""
    if not messages or messages[-1].role != "user":
        raise BadRequest("There is no message to answer: the last one must be from the user.")
    if options.speech and options.voice is not None and voices and options.voice not in voices:
        raise BadRequest(f"There is no voice called {options.voice[:50]}; choose one of {', '.join(voices)}.")
    check_numbers(options)
