"""When the next clause must be ready, and whose turn it is to be made. No sound here, only arithmetic and a queue."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Cancelled = Callable[[], bool]
Clock = Callable[[], float]
"""Seconds, monotonic."""

_SAFETY = 1.5
"""Synthesis may take this much longer than expected before a gap is heard."""
_RESERVE_SECONDS = 0.2
_CLAUSE_SECONDS_TO_MAKE = 2.0
_SHORTEST_CHARS = 30
_LONGEST_CHARS = 90  # also bounds the memory that the speech model keeps for its longest input
_LEARNING_RATE = 0.3
_INSTANT_RTF = 0.1
POLL_SECONDS = 0.05
"""How often a waiting or working part looks whether it has been cancelled."""


@dataclass(slots=True)
class Pace:
    """Follows one reply: how much sound lies ahead of the listener, and how long the next clause may be.

    The listener is taken to hear each piece as soon as it is made; any delay on the way only adds reserve.
    """

    clock: Clock
    rtf: float
    """Real-time factor: seconds of work per second of speech."""
    seconds_per_char: float = 0.07
    dry_at: float | None = None
    """Clock time at which the sound made so far ends; None before the first sound."""

    @property
    def started(self) -> bool:
        return self.dry_at is not None

    @property
    def instant(self) -> bool:
        """Whether making a whole sentence costs no time worth saving by cutting it."""
        return self.rtf < _INSTANT_RTF

    def buffered_seconds(self) -> float:
        return 0.0 if self.dry_at is None else max(0.0, self.dry_at - self.clock())

    def limit_chars(self) -> int:
        """The longest clause that is ready before the sound ends."""
        seconds_to_make = min(self.buffered_seconds() / _SAFETY, _CLAUSE_SECONDS_TO_MAKE)
        fitting = int(seconds_to_make / self._seconds_to_make_char())
        return max(_SHORTEST_CHARS, min(fitting, _LONGEST_CHARS))

    def seconds_to_wait(self, pending_chars: int) -> float:
        """For how long more text may still be awaited before `pending_chars` must be made into sound."""
        needed = pending_chars * self._seconds_to_make_char() * _SAFETY + _RESERVE_SECONDS
        return max(0.0, self.buffered_seconds() - needed)

    def must_hurry(self, pending_chars: int) -> bool:
        """Whether to go on with what there is. A few letters are not worth a clause: they would sound chopped."""
        return pending_chars >= _SHORTEST_CHARS and self.seconds_to_wait(pending_chars) == 0.0

    def record(self, chars: int, speech_seconds: float, work_seconds: float) -> None:
        """A clause has been made, and is on its way to the listener."""
        now = self.clock()
        self.dry_at = max(now, self.dry_at or now) + speech_seconds
        if speech_seconds > 0 and chars > 0:
            self.rtf += _LEARNING_RATE * (work_seconds / speech_seconds - self.rtf)
            self.seconds_per_char += _LEARNING_RATE * (speech_seconds / chars - self.seconds_per_char)

    def _seconds_to_make_char(self) -> float:
        return max(self.rtf * self.seconds_per_char, 1e-6)


class Turns:
    """One speech model, many replies: the reply whose sound ends first is served first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[tuple[float, int]] = []
        self._numbers = itertools.count()
        self._busy = False

    @contextmanager
    def turn(self, dry_at: float, cancelled: Cancelled) -> Iterator[bool]:
        """Waits for the model; False when the reply was cancelled meanwhile, and the model is not held."""
        got = self._wait((dry_at, next(self._numbers)), cancelled)
        try:
            yield got
        finally:
            if got:
                self._leave()

    def _wait(self, ticket: tuple[float, int], cancelled: Cancelled) -> bool:
        with self._changed:
            heapq.heappush(self._waiting, ticket)
            while self._busy or self._waiting[0] != ticket:
                if cancelled():
                    self._waiting.remove(ticket)
                    heapq.heapify(self._waiting)
                    self._changed.notify_all()
                    return False
                self._changed.wait(POLL_SECONDS)
            heapq.heappop(self._waiting)
            self._busy = True
            return True

    def _leave(self) -> None:
        with self._changed:
            self._busy = False
            self._changed.notify_all()
