"""How fast Kokoro is on this machine: measured once, remembered in `speech_rtf.json`.

Only a machine that was slow while other programs kept it busy is measured again, by the first start an hour later.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

KEEPS_UP_RTF = 0.8
"""Above this the voice would run dry whenever the machine does something else."""
_PLAINLY_FAST_RTF = 0.5
_ATTEMPTS = 3
_LEAST_OWN_SHARE = 0.8
"""Processor time of this process for each second and thread, below which others had the processor too."""
_AGAIN_AFTER_SECONDS = 3600.0
_WORTH_A_THREAD = 0.85


@dataclass(frozen=True, slots=True)
class Speed:
    threads: int
    rtf: float
    """Real-time factor: seconds of work per second of speech."""
    disturbed: bool = False
    """Whether it does not keep up and other programs had the processor while it was measured."""

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


@dataclass(frozen=True, slots=True)
class Clocks:
    """Seconds: on the wall, of the processor for this process, and since the epoch."""

    wall: Callable[[], float] = time.monotonic
    work: Callable[[], float] = time.process_time
    now: Callable[[], float] = time.time


def measured(cache_dir: Path, measure: Callable[[int], float], clocks: Clocks | None = None) -> Speed:
    """The remembered speed, or else the best that `measure(threads)` finds, in RTF."""
    clocks = clocks or Clocks()
    path, machine = record_path(cache_dir), _machine()
    known = _read(path)
    with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
        return _remembered(known[machine], clocks.now())
    speed = _fastest(measure, clocks)
    record = {"threads": speed.threads, "rtf": speed.rtf}
    until = {"until": clocks.now() + _AGAIN_AFTER_SECONDS} if speed.disturbed else {}
    _write(path, {**known, machine: record | until})
    return speed


def _remembered(record: dict[str, float], now: float) -> Speed:
    """Raises what a damaged record does, and ValueError for one that holds no longer."""
    if now > record.get("until", now):
        raise ValueError("it was measured on a busy machine, some time ago")
    return Speed(int(record["threads"]), float(record["rtf"]), "until" in record)


def record_path(cache_dir: Path) -> Path:
    return cache_dir / "speech_rtf.json"


def _fastest(measure: Callable[[int], float], clocks: Clocks) -> Speed:
    best: Speed | None = None
    for threads in thread_counts(usable_cores()):
        speed = _best_of_some(measure, threads, clocks)
        if best is None or speed.rtf < best.rtf * _WORTH_A_THREAD:
            best = speed
    assert best is not None
    return best


def _best_of_some(measure: Callable[[int], float], threads: int, clocks: Clocks) -> Speed:
    """The quickest of a few attempts, because a machine that is busy for a moment must not be remembered as slow."""
    best = measure(threads)  # the first one loads the model too, and waits for the disk
    began, worked = clocks.wall(), clocks.work()
    for _ in range(_ATTEMPTS - 1):
        if best <= _PLAINLY_FAST_RTF:
            break
        best = min(best, measure(threads))
    own = (clocks.work() - worked) / threads
    shared = own < _LEAST_OWN_SHARE * (clocks.wall() - began)
    return Speed(threads, round(best, 3), shared and best > KEEPS_UP_RTF)


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
