"""What a verification found, as people and pages read it.

verification.json, version 1; every key is always there:

    version          1
    passed           whether every check passed
    folder, source   paths, or names alone in a published folder; source is "" where there was nothing to compare with
    checks           [{name, passed, detail, offenders}]
    worst            the ten worst layers, worst first: [{layer, kind, relative}]
    mean_error       {part: mean relative weight error}
    depth_error      [{part, depth, mean, worst, layers}] by part and decoder layer: what a plot over the depth shows
    quality          {perplexity, perplexity_before, perplexity_ratio, kl, agreement, tokens}, or {} if not measured
    speech           {asked, said_before, said_after, heard_before, heard_after, word_error_rate,
                      word_error_rate_before, word_error_rate_after, wav_before, wav_after}, or null
    not_measured     {"quality" | "speech": why}, one entry for each that is missing in whole or in part

kl is in nats a token, from the original. agreement is the share of positions with the same most likely token.
Figures that are no number (a layer of NaN) are null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quantize.errors import VerificationFailed
from quantize.speech import Speech

VERSION = 1


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    passed: bool
    detail: str
    """What was found, in one sentence."""
    offenders: tuple[str, ...] = ()
    """The first of them."""


@dataclass(frozen=True, slots=True)
class LayerError:
    layer: str
    kind: str
    relative: float
    """Frobenius norm of the difference over that of the original weights."""


@dataclass(frozen=True, slots=True)
class DepthError:
    """The relative weight errors of one part within one decoder layer."""

    part: str
    depth: int
    mean: float
    worst: float
    layers: int


@dataclass(frozen=True, slots=True)
class Report:
    folder: str
    source: str
    checks: tuple[Check, ...]
    worst: tuple[LayerError, ...] = ()
    mean_error: Mapping[str, float] = field(default_factory=dict)
    """Mean relative weight error by part."""
    quality: Mapping[str, float] = field(default_factory=dict)
    """Perplexity, KL and agreement, where they were measured."""
    depth_error: tuple[DepthError, ...] = ()
    speech: Speech | None = None
    not_measured: Mapping[str, str] = field(default_factory=dict)
    """Why, by "quality" and "speech"."""

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = _numbers({"version": VERSION, "passed": self.passed, **asdict(self)})
        return found

    def table(self) -> str:
        """For people, in Markdown."""
        rows = [f"| {'ok' if c.passed else 'FAILED'} | {c.name} | {c.detail} |" for c in self.checks]
        blocks = [["| | check | found |", "| --- | --- | --- |", *rows]]
        if self.worst:
            worst = [f"| {e.layer} | {e.kind} | {e.relative:.4f} |" for e in self.worst]
            blocks.append(["| worst layers | kind | relative error |", "| --- | --- | --- |", *worst])
        if figures := self._figures():
            blocks.append(["| quality | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in figures)])
        blocks += [[f"Not measured: {name}, because {why}."] for name, why in self.not_measured.items()]
        return "\n\n".join("\n".join(block) for block in blocks) + "\n"

    def _figures(self) -> list[tuple[str, str]]:
        found = [
            (name, f"{value:.4f}" if isinstance(value, float) else str(value)) for name, value in self.quality.items()
        ]
        if self.speech is None:
            return found
        found += [("said before", _cell(self.speech.said_before)), ("said after", _cell(self.speech.said_after))]
        if self.speech.word_error_rate is not None:
            found.append(("word error rate", f"{self.speech.word_error_rate:.4f}"))
        return found

    def require(self) -> None:
        """Raises VerificationFailed with the failed checks."""
        failed = [check for check in self.checks if not check.passed]
        if failed:
            raise VerificationFailed(" ".join(f"{check.name}: {check.detail}" for check in failed))


def _cell(text: str) -> str:
    """What a model said, for a cell of a table in Markdown."""
    return " ".join(text.split()).replace("|", "\\|")


def write(report: Report, folder: Path) -> None:
    """verification.json and verification.md."""
    (folder / "verification.json").write_text(json.dumps(report.as_dict(), indent=2, allow_nan=False))
    (folder / "verification.md").write_text(report.table())


def _numbers(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _numbers(inner) for key, inner in value.items()}
    return [_numbers(inner) for inner in value] if isinstance(value, list | tuple) else value
