"""The one engine of this process: started in the background, watched, and never given more replies than it may hold."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncGenerator, Sequence

from omni_app.conversation import Event, Message, ReplyOptions
from omni_app.engines.base import Engine, EngineStatus
from omni_app.errors import EngineAtCapacity, EngineUnavailable, OmniError

log = logging.getLogger(__name__)


class Runner:
    """Owns an engine. `chosen_because` is shown beside the engine's own words, so that the choice is never a riddle."""

    def __init__(self, engine: Engine, chosen_because: str, max_replies: int) -> None:
        self.engine = engine
        self.chosen_because = chosen_because
        self._max_replies = max_replies
        self._running = 0
        self._starting: asyncio.Task[None] | None = None
        self._failure: str | None = None

    def start(self) -> None:
        """Begin loading on the running loop and return at once: the page opens while the models still load.

        After a failed start this tries again; while one runs, or after a good one, it does nothing.
        """
        if self._starting is None or self._failure is not None:
            self._failure = None
            self._starting = asyncio.create_task(self._start(), name="engine start")

    async def _start(self) -> None:
        try:
            await self.engine.start()
        except OmniError as error:
            self._failure = str(error)
            log.error("the engine did not start: %s", error)
        except Exception:
            self._failure = "The engine could not start; the log of the app says why."
            log.exception("the engine did not start")
        else:
            log.info("engine ready: %s", self.engine.status().model)

    def status(self) -> EngineStatus:
        status = self.engine.status()
        if self._failure is not None:
            return dataclasses.replace(status, ready=False, why=self._failure)
        return status

    async def reply(self, messages: Sequence[Message], options: ReplyOptions) -> AsyncGenerator[Event, None]:
        """The engine's answer, once it is ready. Raises EngineUnavailable, EngineAtCapacity, and what engines do."""
        if self._starting is None:
            raise EngineUnavailable("The engine has not been started.")
        if self._running >= self._max_replies:
            raise EngineAtCapacity(
                f"{self._running} answers are being made already, which is as many as this server takes at once "
                "(max-replies). Please try again in a moment."
            )
        self._running += 1
        try:
            if self._failure is not None:
                self.start()
            await asyncio.shield(self._starting)
            if self._failure is not None:
                raise EngineUnavailable(self._failure)
            events = self.engine.reply(messages, options)
            async with contextlib.aclosing(events) as stream:
                async for event in stream:
                    yield event
        finally:
            self._running -= 1

    @property
    def running(self) -> int:
        return self._running

    async def close(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._starting
        await self.engine.close()
