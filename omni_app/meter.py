"""How fast one reply came: the figures under an answer, behind /metrics and in the benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from omni_app.conversation import AudioDelta, Event, ReplyEnd, ReplyStats, TextDelta

CHARS_PER_TOKEN = 4
FEWEST_DELTAS = 8
"""A text that comes in fewer pieces, uncounted, was not decoded as we watched: it has no rate to speak of."""


@dataclass(frozen=True, slots=True)
class ReplyFigures:
    """Times are seconds since the request; None where there was nothing to measure."""

    first_text_s: float | None
    first_sound_s: float | None
    text_tokens: int
    text_tokens_estimated: bool
    """True when the engine did not count: then the tokens are the deltas, or a quarter of the characters, if more."""
    tokens_per_second: float | None
    """Decode rate: the tokens after the first text over the time from first to last text."""
    speech_s: float
    """Length of the speech."""
    real_time_factor: float | None
    """Time from the request to the last sound over the length of the speech; below 1 nobody waits."""
    total_s: float

    def line(self) -> str:
        """The quiet line under an answer; empty when there is nothing to say."""
        about = "≈" if self.text_tokens_estimated else ""
        said = (
            ("first text {:.2f} s", self.first_text_s),
            ("first sound {:.2f} s", self.first_sound_s),
            (about + "{:.0f} tokens/s", self.tokens_per_second),
            ("real-time factor {:.2f}", self.real_time_factor),
        )
        return " · ".join(form.format(value) for form, value in said if value is not None)


class ReplyMeter:
    """Made when the request leaves; shown every event as it arrives."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._first_text: float | None = None
        self._last_text = 0.0
        self._first_sound: float | None = None
        self._last_sound = 0.0
        self._end: float | None = None
        self._deltas = 0
        self._chars = 0
        self._speech_s = 0.0
        self._counted: int | None = None

    def observe(self, event: Event) -> None:
        now = self._clock() - self._start
        match event:
            case TextDelta(text) if text:
                self._text(now, len(text))
            case AudioDelta(pcm) if pcm:
                self._first_sound = now if self._first_sound is None else self._first_sound
                self._last_sound = now
                self._speech_s += event.seconds
            case ReplyStats(completion_tokens=tokens):
                self._counted = tokens
            case ReplyEnd():
                self._end = now

    def _text(self, now: float, chars: int) -> None:
        self._first_text = now if self._first_text is None else self._first_text
        self._last_text = now
        self._deltas += 1
        self._chars += chars

    def figures(self) -> ReplyFigures:
        """What is known by now; may be asked at any time, also in mid-reply."""
        tokens = self._counted if self._counted is not None else self._estimate()
        return ReplyFigures(
            first_text_s=self._first_text,
            first_sound_s=self._first_sound,
            text_tokens=tokens,
            text_tokens_estimated=self._counted is None,
            tokens_per_second=self._rate(tokens),
            speech_s=self._speech_s,
            real_time_factor=self._last_sound / self._speech_s if self._speech_s else None,
            total_s=self._clock() - self._start if self._end is None else self._end,
        )

    def line(self) -> str:
        return self.figures().line()

    def _estimate(self) -> int:
        return max(self._deltas, round(self._chars / CHARS_PER_TOKEN))

    def _rate(self, tokens: int) -> float | None:
        watched = self._counted is not None or self._deltas >= FEWEST_DELTAS
        if self._first_text is None or not watched or tokens < 2 or self._last_text <= self._first_text:
            return None
        return (tokens - 1) / (self._last_text - self._first_text)
