"""How much a visitor may send, and how long reading it may take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from omni_app.errors import BadRequest
from omni_app.settings import Settings


@dataclass(frozen=True, slots=True)
class Limits:
    max_upload_mb: int
    max_image_megapixels: int
    max_audio_seconds: int
    max_video_seconds: int
    max_media_parts: int
    max_text_chars: int

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(**{name: getattr(settings, name) for name in cls.__dataclass_fields__})

    @property
    def max_bytes(self) -> int:
        return self.max_upload_mb * 10**6

    @property
    def max_pixels(self) -> int:
        return self.max_image_megapixels * 1_000_000


def check_text(text: str, limits: Limits) -> None:
    """Raises BadRequest when a message is longer than we take."""
    if len(text) > limits.max_text_chars:
        raise BadRequest(
            f"The message has {len(text):,} characters; at most {limits.max_text_chars:,} are taken. "
            "Shorten it or send it in pieces."
        )


def check_count(files: int, limits: Limits) -> None:
    """Raises BadRequest when one message carries more files than we take."""
    if files > limits.max_media_parts:
        raise BadRequest(
            f"The message has {files} files; at most {limits.max_media_parts} are taken. "
            "Send the rest in another message."
        )


class Overdue(Exception):
    """The work took longer than its deadline, or nobody waits for it any more. Never shown: intake puts it in words."""


class Deadline:
    """A clock that a worker thread asks between two steps of work. Starts when made."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._end = clock() + seconds
        self._cancelled = threading.Event()

    def restart(self) -> None:
        """Begin anew: the time spent waiting for a free worker does not count."""
        self._end = self._clock() + self.seconds

    def cancel(self) -> None:
        self._cancelled.set()

    @property
    def passed(self) -> bool:
        return self._cancelled.is_set() or self._clock() > self._end

    def check(self) -> None:
        """Raises Overdue when the work should stop."""
        if self.passed:
            raise Overdue


def in_words(seconds: float) -> str:
    """A length as people say it: `45 seconds`, `10 minutes`, `1 h 05 min`."""
    if seconds < 120:
        return "1 second" if round(seconds) == 1 else f"{seconds:.0f} seconds"
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
