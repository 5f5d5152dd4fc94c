"""How much one visitor may ask for: answers at one time, and questions per minute."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterator

from omni_app.conversation import Event
from omni_app.errors import EngineAtCapacity
from omni_app.settings import Settings

MINUTE = 60.0
KNOWN_AT_MOST = 10_000
"""Visitors who are remembered; beyond, those who have asked nothing for a minute are forgotten."""


class TooMany(EngineAtCapacity):
    """This visitor has asked for as much as one may; others are still answered."""

    def __init__(self, message: str, wait_seconds: float) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds
        """When to try again."""


class Turnstile:
    """Counts by visitor; 0 means without limit."""

    def __init__(self, at_once: int = 0, per_minute: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._at_once = at_once
        self._per_minute = per_minute
        self._clock = clock
        self._running: Counter[str] = Counter()
        self._asked: dict[str, deque[float]] = {}

    @classmethod
    def of(cls, settings: Settings) -> Turnstile:
        return cls(settings.visitor_replies, settings.visitor_per_minute)

    async def through(self, visitor: str, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
        """The reply's events, once the visitor may have it. Raises TooMany before the reply has begun."""
        with self._passed(visitor):
            async with contextlib.aclosing(events):
                async for event in events:
                    yield event

    @contextlib.contextmanager
    def _passed(self, visitor: str) -> Iterator[None]:
        self._check_at_once(visitor)
        self._check_pace(visitor)
        self._running[visitor] += 1
        try:
            yield
        finally:
            self._running[visitor] -= 1
            self._running += Counter()  # drops those at zero

    def _check_at_once(self, visitor: str) -> None:
        if self._at_once and self._running[visitor] >= self._at_once:
            raise TooMany(
                f"You have {self._running[visitor]} answers being made already, which is as many as one visitor gets "
                "at a time (visitor-replies). Wait for one to end, or stop it.",
                1.0,
            )

    def _check_pace(self, visitor: str) -> None:
        if not self._per_minute:
            return
        now = self._clock()
        asked = self._asked.setdefault(visitor, deque())
        while asked and asked[0] <= now - MINUTE:
            asked.popleft()
        if len(asked) >= self._per_minute:
            wait = asked[0] + MINUTE - now
            raise TooMany(
                f"You have asked {len(asked)} questions within a minute, which is as many as one visitor may "
                f"(visitor-per-minute). Please ask again in {wait:.0f} seconds.",
                wait,
            )
        asked.append(now)
        if len(self._asked) > KNOWN_AT_MOST:
            self._asked = {one: times for one, times in self._asked.items() if times and times[-1] > now - MINUTE}
