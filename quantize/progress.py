"""What a running job says about itself: one JSON object a line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

_EVERY_SECONDS, _EVERY_MOST = 0.25, 5.0
_UNEVEN = ("environment",)
"""Stages of few steps, too unlike each other to tell the time of the next by the last; each is written down."""
_LINES_A_STAGE = 400
"""A long stage writes a line less often, so that whoever follows reads kilobytes even of a day's work."""


@dataclass(frozen=True, slots=True)
class Progress:
    stage: str
    """environment, fetch, check, capture, quantize, convert, verify, measure, finish."""
    done: int
    total: int
    layer: str = ""
    seconds_left: float | None = None
    """Of this stage; None until it can be told."""
    ram_bytes: int = 0
    """Resident memory of the working process."""
    time: float = 0.0
    """Seconds since the epoch."""


Tell = Callable[[str, int, int, str], None]
"""Called with stage, done, total and the layer in hand."""


def silent(stage: str, done: int, total: int, layer: str = "") -> None:
    """For callers that want no progress."""


class Reporter:
    """Writes progress to a file as JSON lines, a few a second at most, and fewer later. Call it as a `Tell`."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._stage = ""
        self._started = 0.0
        self._last = 0.0

    def __call__(self, stage: str, done: int, total: int, layer: str = "") -> None:
        now = self._clock()
        if stage != self._stage:
            self._stage, self._started, self._last = stage, now, 0.0
        if stage not in _UNEVEN and now - self._last < self._pause(now) and done < total:
            return
        self._last = now
        even = done and stage not in _UNEVEN
        left = (now - self._started) / done * (total - done) if even else None
        line = Progress(stage, done, total, layer, left, resident_bytes(), now)
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(line)) + "\n")

    def _pause(self, now: float) -> float:
        return min(max(_EVERY_SECONDS, (now - self._started) / _LINES_A_STAGE), _EVERY_MOST)


def resident_bytes() -> int:
    """Resident memory of this process, 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * 4096
