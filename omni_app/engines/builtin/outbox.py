"""Carries the events of one reply from its worker threads to the event loop, never more than a few ahead."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncGenerator

from omni_app.conversation import Event
from omni_app.engines.builtin.pacing import POLL_SECONDS
from omni_app.errors import OmniError

_MOST_AHEAD = 64
"""Events; a worker waits when the taker lags by that many, so a slow visitor costs no memory."""


class Outbox:
    """`put`, `fail` and `end` on any thread, `events` on the loop that made it."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._events: deque[Event] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._failure: OmniError | None = None

    def put(self, event: Event) -> None:
        """Waits for room. After a cancel the event is dropped."""
        with self._changed:
            while len(self._events) >= _MOST_AHEAD and not self.cancelled.is_set():
                self._changed.wait(POLL_SECONDS)
            if self.cancelled.is_set():
                return
            self._events.append(event)
            self._wake()

    def fail(self, error: OmniError) -> None:
        """Raised to the taker after the events so far."""
        self._end(error)

    def end(self) -> None:
        self._end(None)

    def _end(self, failure: OmniError | None) -> None:
        with self._changed:
            self._failure = failure
            self._ended = True
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed, so nobody is left to wake
            self._loop.call_soon_threadsafe(self._arrived.set)

    async def events(self) -> AsyncGenerator[Event, None]:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._events:
                with self._changed:
                    event = self._events.popleft()
                    self._changed.notify()
                yield event
            if self._ended and not self._events:
                if self._failure is not None:
                    raise self._failure
                return
