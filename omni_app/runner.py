"""The one engine of this process: started in the background, watched, and never given more replies than it may hold."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Sequence

from omni_app.conversation import Event, Message, ReplyOptions
from omni_app.engines.base import Engine, EngineStatus
from omni_app.errors import EngineAtCapacity, EngineUnavailable, OmniError

log = logging.getLogger(__name__)

RESTING = (
    "It rests, as nobody has asked anything for a while; the next question wakes it and takes some seconds longer."
)


class _Tenant:
    """An engine with what we know about its start and its work."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.starting: asyncio.Task[None] | None = None
        self.failure = ""
        self.running = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.last_used = time.monotonic()
        self.rests: EngineStatus | None = None
        """Set while only a question starts it: what the one before it could do, which a fresh one does not know yet."""

    def start(self) -> None:
        """After a failed start this tries again; while one runs, or after a good one, it does nothing."""
        if self.starting is None or self.failure:
            self.failure = ""
            self.starting = asyncio.create_task(self._start(), name="engine start")

    async def _start(self) -> None:
        try:
            await self.engine.start()
        except OmniError as error:
            self.failure = str(error)
            log.error("the engine did not start: %s", error)
        except Exception:
            self.failure = "The engine could not start; the log of the app says why."
            log.exception("the engine did not start")
        else:
            log.info("engine ready: %s", self.engine.status().model)

    async def started(self) -> None:
        """Raises EngineUnavailable when it has not been started, or could not."""
        if self.failure or self.rests:
            self.rests = None
            self.start()
        if self.starting is None:
            raise EngineUnavailable("The engine has not been started.")
        await asyncio.shield(self.starting)
        if self.failure:
            raise EngineUnavailable(self.failure)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        self.running += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.running -= 1
            self.last_used = time.monotonic()
            if not self.running:
                self.idle.set()

    async def close(self) -> None:
        if self.starting is not None:
            self.starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.starting
        await self.engine.close()


class Runner:
    """Owns an engine. `chosen_because` is shown beside the engine's own words, so that the choice is never a riddle."""

    def __init__(self, engine: Engine, chosen_because: str, max_replies: int) -> None:
        self.chosen_because = chosen_because
        self._max_replies = max_replies
        self._tenant = _Tenant(engine)
        self._leaving: set[asyncio.Task[None]] = set()

    @property
    def engine(self) -> Engine:
        return self._tenant.engine

    @property
    def running(self) -> int:
        """Replies that are being made now."""
        return self._tenant.running

    @property
    def idle_seconds(self) -> float:
        """Since the last answer ended; 0 while one is made, and while the engine rests already."""
        busy = self._tenant.running or self._tenant.rests
        return 0.0 if busy else time.monotonic() - self._tenant.last_used

    def start(self) -> None:
        """Begin loading on the running loop and return at once: the page opens while the models still load."""
        self._tenant.start()

    def use(self, engine: Engine, chosen_because: str) -> None:
        """Answer with another engine from now on. The old one is closed when the replies that it makes have ended."""
        self._move_to(engine, chosen_because)
        self._tenant.start()

    def rest(self, engine: Engine, chosen_because: str) -> None:
        """Let go of all memory; this fresh engine of the same kind starts with the next question."""
        awake = self.engine.status()
        self._move_to(engine, chosen_because)
        self._tenant.rests = dataclasses.replace(awake, ready=True, why=RESTING)

    def _move_to(self, engine: Engine, chosen_because: str) -> None:
        leaving, self._tenant = self._tenant, _Tenant(engine)
        self.chosen_because = chosen_because
        task = asyncio.create_task(_farewell(leaving), name="engine farewell")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def status(self) -> EngineStatus:
        if self._tenant.rests:
            return self._tenant.rests
        status = self.engine.status()
        if self._tenant.failure:
            return dataclasses.replace(status, ready=False, why=self._tenant.failure)
        return status

    async def reply(self, messages: Sequence[Message], options: ReplyOptions) -> AsyncGenerator[Event, None]:
        """The engine's answer, once it is ready. Raises EngineUnavailable, EngineAtCapacity, and what engines do."""
        tenant = self._tenant
        if tenant.running >= self._max_replies:
            raise EngineAtCapacity(
                f"{tenant.running} answers are being made already, which is as many as this server takes at once "
                "(max-replies). Please try again in a moment."
            )
        with tenant.at_work():
            await tenant.started()
            async with contextlib.aclosing(tenant.engine.reply(messages, options)) as events:
                async for event in events:
                    yield event

    async def close(self) -> None:
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        await self._tenant.close()


async def _farewell(tenant: _Tenant) -> None:
    try:
        await tenant.idle.wait()
    finally:
        await tenant.close()
