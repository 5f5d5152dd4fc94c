"""One measurement beside others: memory, tokens per second, speed-up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from omni_app.errors import BadRequest

_HEAD = ("", "memory (GiB)", "tokens/s", "first text (ms)", "first sound (ms)", "real-time factor", "speed-up")


class Summary(BaseModel):
    """Of one user; what could not be measured is None. The key `summary` of a file that `bench --out` writes."""

    model_config = ConfigDict(frozen=True)

    name: str
    memory_gib: float | None = None
    tokens_per_second: float | None = None
    first_text_ms: float | None = None
    first_sound_ms: float | None = None
    real_time_factor: float | None = None


def summary_of(path: Path) -> Summary:
    """Raises BadRequest for a file that holds none."""
    try:
        return Summary.model_validate(json.loads(path.read_text())["summary"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise BadRequest(
            f"{path} is no baseline: it must be a file that `bench --out` wrote, or JSON with a summary in it."
        ) from error


def table(rows: Sequence[Summary]) -> str:
    """In Markdown, one line for each; the speed-up is over the first, in tokens per second."""
    first = rows[0].tokens_per_second
    lines = ["| " + " | ".join(_HEAD) + " |", "| --- |" + " ---: |" * (len(_HEAD) - 1)]
    return "\n".join([*lines, *(_line(one, first) for one in rows)])


def _line(one: Summary, first: float | None) -> str:
    gain = one.tokens_per_second / first if one.tokens_per_second and first else None
    cells = (
        (one.memory_gib, "{:.1f}"), (one.tokens_per_second, "{:.3g}"), (one.first_text_ms, "{:.0f}"),
        (one.first_sound_ms, "{:.0f}"), (one.real_time_factor, "{:.2f}"), (gain, "{:.2f} x"),
    )  # fmt: skip
    return (
        " | ".join([f"| {one.name}", *("-" if value is None else form.format(value) for value, form in cells)]) + " |"
    )
