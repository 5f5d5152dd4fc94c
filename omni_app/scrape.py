"""What a vllm-omni server counts about itself: its /metrics before and after a load, as a few figures.

Names are those of vllm-omni 0.30 (`metrics/definitions.py`; a whole page is among the tests' data).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

ANSWER_S = 10.0
_OMNI = "vllm_omni:"
_KV_USE = "vllm:kv_cache_usage_perc"
_STAGES = {"0": "thinker", "1": "talker", "2": "code2wav"}

Counts = Mapping[str, float]
"""Sample name -> value, over all its labels together; the use of a KV cache by stage, as `vllm:...{0}`."""


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """Of the requests between two looks. Means; None where nothing was counted."""

    answers: float
    failed: float
    still_known: float
    """Requests that the server still has, running or waiting; a spoken answer counts as waiting."""
    queue_wait_s: float | None
    first_sound_s: float | None
    real_time_factor: float | None
    underrun_s: float | None
    """How long its speech would have stood still in one answer."""
    kv_use: Mapping[str, float]
    """Fraction of a stage's KV cache that was in use at the second look."""

    def line(self) -> str:
        means = (
            ("waited {:.0f} ms", self.queue_wait_s, 1000),
            ("first sound {:.0f} ms", self.first_sound_s, 1000),
            ("real-time factor {:.2f}", self.real_time_factor, 1),
            ("stood still {:.0f} ms", self.underrun_s, 1000),
        )
        told = [form.format(value * scale) for form, value, scale in means if value is not None]
        left = f"; {self.still_known:.0f} not ended" if self.still_known else ""
        return ", ".join([f"{self.answers:.0f} answers, {self.failed:.0f} failed", *told]) + left


async def scrape(endpoint: str, key: str = "") -> Counts:
    """Nothing for an endpoint that has no such page, or does not show it."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with httpx.AsyncClient(timeout=ANSWER_S, trust_env=False) as client:
            page = await client.get(f"{endpoint.rstrip('/').removesuffix('/v1')}/metrics", headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL):
        return {}
    return read(page.text) if page.status_code == 200 else {}


def read(page: str) -> Counts:
    """Nothing when the page is not in Prometheus' text format."""
    counts: dict[str, float] = {}
    try:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                name = f"{_KV_USE}{{{sample.labels.get('stage')}}}" if sample.name == _KV_USE else sample.name
                counts[name] = counts.get(name, 0.0) + sample.value
    except ValueError:
        return {}
    return counts


def between(before: Counts, after: Counts) -> ServerFigures | None:
    """None when it is no vllm-omni server."""
    if not any(name.startswith(_OMNI) for name in after):
        return None

    def grown(name: str) -> float:
        return after.get(_OMNI + name, 0.0) - before.get(_OMNI + name, 0.0)

    def mean(name: str) -> float | None:
        counted = grown(f"{name}_count")
        return grown(f"{name}_sum") / counted if counted > 0 else None

    known = sum(after.get(f"{_OMNI}num_requests_{state}", 0.0) for state in ("running", "waiting"))
    kv_use = {name: after[key] for stage, name in _STAGES.items() if (key := f"{_KV_USE}{{{stage}}}") in after}
    return ServerFigures(
        grown("requests_success_total"), grown("requests_failed_total"), known, mean("request_queue_wait_s"),
        mean("audio_ttfp_s"), mean("audio_rtf"), mean("audio_underrun_s"), kv_use,
    )  # fmt: skip
