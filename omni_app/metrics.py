"""What the API tells Prometheus about its replies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from omni_app.access import Forbidden, Unauthorized
from omni_app.errors import BadRequest, EngineAtCapacity, EngineUnavailable, MediaRejected, OmniError
from omni_app.meter import ReplyFigures

SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 40)
"""Bucket bounds around the figures that we aim at."""


class Metrics:
    """Prometheus series in a registry of their own: several apps in one process do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # SAGE's plugin tells the memory of the server by it
        self._requests = Counter("omni_requests", "Chat requests by outcome.", ["outcome"], registry=self.registry)
        self.running = Gauge("omni_replies_running", "Replies being made for API callers now.", registry=self.registry)
        self._first_text = Histogram(
            "omni_first_text_seconds", "Request to first text.", buckets=SECONDS, registry=self.registry
        )
        self._first_sound = Histogram(
            "omni_first_sound_seconds", "Request to first sound.", buckets=SECONDS, registry=self.registry
        )
        self._speech = Counter("omni_speech_seconds", "Seconds of speech made.", registry=self.registry)
        self._rejected = Counter("omni_media_rejected", "Files that were not taken.", registry=self.registry)

    @contextlib.contextmanager
    def refusals(self) -> Iterator[None]:
        """Counts what is refused before any engine sees it."""
        try:
            yield
        except OmniError as error:
            self._requests.labels(outcome_of(error)).inc()
            self._rejected.inc(isinstance(error, MediaRejected))
            raise

    def record(self, outcome: str, figures: ReplyFigures) -> None:
        self._requests.labels(outcome).inc()
        self._speech.inc(figures.speech_s)
        if figures.first_text_s is not None:
            self._first_text.observe(figures.first_text_s)
        if figures.first_sound_s is not None:
            self._first_sound.observe(figures.first_sound_s)


def outcome_of(error: OmniError) -> str:
    """The word under which an error is counted."""
    named = {
        MediaRejected: "media_rejected",
        BadRequest: "bad_request",
        Unauthorized: "unauthorized",
        Forbidden: "forbidden",
        EngineAtCapacity: "at_capacity",
        EngineUnavailable: "unavailable",
    }
    return next((word for kind, word in named.items() if isinstance(error, kind)), "failed")
