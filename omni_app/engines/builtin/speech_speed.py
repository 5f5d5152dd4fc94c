"""How fast Kokoro is on this machine: measured once, remembered in `speech_rtf.json`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

KEEPS_UP_RTF = 0.8
"""Above this the voice would run dry whenever the machine does something else."""
_PLAINLY_FAST_RTF = 0.5
_ATTEMPTS = 3
_WORTH_A_THREAD = 0.85


@dataclass(frozen=True, slots=True)
class Speed:
    threads: int
    rtf: float
    """Real-time factor: seconds of work per second of speech."""

    @property
    def keeps_up(self) -> bool:
        return self.rtf <= KEEPS_UP_RTF


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_counts(cores: int) -> tuple[int, ...]:
    """What is worth trying; always leaves a core free for the language model where there are two."""
    return tuple(count for count in (1, 2, 4) if count == 1 or count * 2 <= cores)


def measured(cache_dir: Path, measure: Callable[[int], float]) -> Speed:
    """The remembered speed, or else the best that `measure(threads)` finds, in RTF."""
    path, machine = record_path(cache_dir), _machine()
    known = _read(path)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return Speed(int(known[machine]["threads"]), float(known[machine]["rtf"]))
    speed = _fastest(measure)
    _write(path, {**known, machine: asdict(speed)})
    return speed


def record_path(cache_dir: Path) -> Path:
    return cache_dir / "speech_rtf.json"


def _fastest(measure: Callable[[int], float]) -> Speed:
    best: Speed | None = None
    for threads in thread_counts(usable_cores()):
        rtf = _best_of_some(measure, threads)
        if best is None or rtf < best.rtf * _WORTH_A_THREAD:
            best = Speed(threads, round(rtf, 3))
    assert best is not None
    return best


def _best_of_some(measure: Callable[[int], float], threads: int) -> float:
    """The quickest of a few attempts, because a machine that is busy for a moment must not be remembered as slow."""
    best = measure(threads)
    for _ in range(_ATTEMPTS - 1):
        if best <= _PLAINLY_FAST_RTF:
            break
        best = min(best, measure(threads))
    return best


def _machine() -> str:
    runtime = importlib.metadata.version("onnxruntime")
    return f"{_cpu_model()}, {usable_cores()} cores, onnxruntime {runtime}"


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(path: Path, known: dict[str, dict[str, float]]) -> None:
    # Forgetting costs a few seconds at the next start, so a cache that cannot be written is no error.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(known, file, indent=1)
        Path(file.name).replace(path)
