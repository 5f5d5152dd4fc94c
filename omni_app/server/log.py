"""What a starting vllm-omni server says in its log, told as stages, phases and seconds. Unknown lines are skipped."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

Phase = Literal["waiting", "importing", "loading", "profiling", "compiling", "warming", "capturing", "ready"]

STAGES = ("thinker", "talker", "code2wav")
WORDS: dict[str, str] = {
    "waiting": "waiting for its turn",
    "importing": "starting Python",
    "loading": "loading the weights",
    "profiling": "measuring its memory",
    "compiling": "compiling",
    "warming": "preparing kernels",
    "capturing": "capturing CUDA graphs",
    "ready": "ready",
}
KEPT_LINES = 2000
LONGEST_LINE = 2000
MOST_LOG_BYTES = 64 * 2**20
"""A log larger than this is emptied: a server prints figures for every answer, for months."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PREFIX = re.compile(r"\((?P<who>\w+) pid=(?P<pid>\d+)\)")
_WHERE_NAMED = re.compile(r"(?=\(\w+ pid=\d+\))")
_STAGE = re.compile(r"stage(\d+)")
_SPREAD = "DP group leader: "
"""Said by the engine of a stage on several GPUs, before it starts a worker for each; those do not tell their stage."""
_TIME = re.compile(r"\b[A-Z]+ (\d\d-\d\d \d\d:\d\d:\d\d)\b")
_COUNT = re.compile(r"Launching Orchestrator thread with (\d+) stages")
_DONE = re.compile(r"Stage (\d+) initialized|stage-(\d+) \[rep-\d+\] EngineCore running")
_PROGRESS = re.compile(r"(?:checkpoint shards|CUDA graphs|JIT kernel warmup).*?\| (\d+)/(\d+) \[")
_WEIGHTS = re.compile(r"Model loading took ([\d.]+) GiB")
_ROOM = re.compile(r"GPU KV cache size: ([\d,]+) tokens")
_COMPILED = re.compile(r"Compiling a graph for compile range")
_KERNEL = re.compile(
    r"(?:Using|Selected) '?(\w+?)'? (?:for (?:\w+ GEMM|CompressedTensors\w+|Auto\w+)|(?:NvFp4|Fp8|Int8) MoE backend)"
)
_PHASES: tuple[tuple[str, Phase], ...] = (
    (r"Initializing a V1 LLM engine", "importing"),
    (r"Starting to load model", "loading"),
    (r"Model loading took", "profiling"),
    (r"Dynamo bytecode transform|Using cache directory: .* for vLLM's torch.compile", "compiling"),
    (r"torch\.compile took", "profiling"),
    (r"Available KV cache memory|JIT kernel warmup starting", "warming"),
    (r"Capturing CUDA graphs|Starting CUDA Graph warmup", "capturing"),
)


class Stage(BaseModel):
    """One stage of the pipeline as far as the log has told."""

    model_config = ConfigDict(frozen=True)

    number: int
    phase: Phase = "waiting"
    since: float = 0.0
    """When the phase began, seconds since the epoch; 0 before the first."""
    seconds: dict[str, float] = {}
    """Seconds that each finished phase took."""
    detail: str = ""
    """How far the phase is, such as "3 of 7"."""
    weights_gib: float | None = None
    room_tokens: int | None = None
    """Tokens that its KV cache holds; None while unknown, and for a stage without one."""
    pid: int | None = None

    @property
    def name(self) -> str:
        return STAGES[self.number] if self.number < len(STAGES) else f"stage {self.number}"

    def words(self, now: float) -> str:
        """One line for people; `now` is the time since the epoch."""
        if self.phase == "ready":
            return f"{self.name}: ready{self._facts()}"
        lasted = f", {max(0.0, now - self.since):.0f} s" if self.since else ""
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.name}: {WORDS[self.phase]}{detail}{lasted}"

    def _facts(self) -> str:
        facts = [f"{self.weights_gib:.1f} GiB of weights"] if self.weights_gib else []
        facts += [f"room for {self.room_tokens:,} tokens"] if self.room_tokens else []
        facts += [f"{WORDS[phase]} {took:.0f} s" for phase, took in self.seconds.items() if took >= 1]
        return f" ({', '.join(facts)})" if facts else ""


@dataclass
class StartupLog:
    """Reads the lines of one start, in order."""

    clock: Callable[[], float] = time.time
    stages: list[Stage] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)
    """For quantized weights, as the server chose them, in its own words."""
    compiled: bool = False
    """Whether it had to compile what an earlier start would have left in the caches: a cold start."""
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    _now: datetime | None = None
    _began: dict[int, datetime | None] = field(default_factory=dict)
    _current: int = 0
    _spread: int = 0

    def feed(self, line: str) -> bool:
        """Take one line; True when it told something about a stage."""
        line = _COLOUR.sub("", line)[:LONGEST_LINE]
        self.lines.append(line)
        self._now = _time(line) or self._now
        self.compiled = self.compiled or bool(_COMPILED.search(line))
        if count := _COUNT.search(line):
            self.stages = [Stage(number=number) for number in range(int(count[1]))]
            self._enter(0, "importing")
            return True
        # A stage's progress bar has no line feed while it grows, so the next stage that speaks does so behind it.
        told = [self._about_stage(part) for part in _WHERE_NAMED.split(line)] if self.stages else []
        return any(told)

    def _about_stage(self, line: str) -> bool:
        if done := _DONE.search(line):
            return self._ready(int(done[1] or done[2]))
        stage = self._speaker(line)
        if stage >= len(self.stages):
            return False
        told = self._facts(stage, line)
        for pattern, phase in _PHASES:
            if re.search(pattern, line):
                told = self._enter(stage, phase) or told
        if self.stages[stage].phase != "ready" and (progress := _PROGRESS.search(line)):
            told = self._update(stage, detail=f"{progress[1]} of {progress[2]}") or told
        return told

    def _speaker(self, line: str) -> int:
        """The stage that a line is about. Progress bars bear no name, and belong to the one that spoke last."""
        prefix = _PREFIX.match(line)
        stage = _STAGE.search(prefix["who"]) if prefix else None
        if prefix and stage:
            self._current = int(stage[1])
            self._spread = self._current if _SPREAD in line else self._spread
            if self._current < len(self.stages):
                self._update(self._current, pid=int(prefix["pid"]))
        elif prefix and prefix["who"].startswith("Worker"):
            self._current = self._spread
        return self._current

    def _facts(self, stage: int, line: str) -> bool:
        if weights := _WEIGHTS.search(line):
            return self._update(stage, weights_gib=float(weights[1]))
        if room := _ROOM.search(line):
            return self._update(stage, room_tokens=int(room[1].replace(",", "")))
        if (kernel := _KERNEL.search(line)) and kernel[1] not in self.kernels:
            self.kernels.append(kernel[1])
        return False

    def _ready(self, stage: int) -> bool:
        if stage >= len(self.stages) or not self._enter(stage, "ready"):
            return False
        if stage + 1 < len(self.stages) and self.stages[stage + 1].phase == "waiting":
            self._current = stage + 1
            self._enter(stage + 1, "importing")
        return True

    def _enter(self, number: int, phase: Phase) -> bool:
        stage = self.stages[number]
        if stage.phase in (phase, "ready"):
            return False
        now = self.clock()
        seconds = dict(stage.seconds)
        if stage.since:
            seconds[stage.phase] = seconds.get(stage.phase, 0.0) + self._lasted(number, now - stage.since)
        self._began[number] = self._now
        return self._update(number, phase=phase, since=now, seconds=seconds, detail="")

    def _lasted(self, number: int, arrived_apart: float) -> float:
        """Seconds of the phase that ends: by the log's own clock, which is right also for a log read later."""
        began, now = self._began.get(number), self._now
        return (now - began).total_seconds() if began and now and now >= began else arrived_apart

    def _update(self, number: int, **changes: object) -> bool:
        changed = self.stages[number].model_copy(update=changes)
        told = changed != self.stages[number]
        self.stages[number] = changed
        return told


def _time(line: str) -> datetime | None:
    """The line's time; the log does not tell the year."""
    told = _TIME.search(line)
    try:
        return datetime.strptime(f"2024-{told[1]}", "%Y-%m-%d %H:%M:%S") if told else None
    except ValueError:
        return None


class Follower:
    """Reads what was added to a log file since the last time, line by line; half a line waits for its rest."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._rest = b""

    def lines(self) -> Iterator[str]:
        with self._path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
            self._position = file.tell()
        # A progress bar returns to the start of its line; its last word must not wait for the next line feed.
        *whole, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        yield from (text for line in whole if (text := line.decode("utf-8", "replace").rstrip()))
        if empty_when_large(self._path):
            self._position = 0

    def flush(self) -> Iterator[str]:
        """Everything that is left, when no more will come."""
        yield from self.lines()
        if self._rest:
            yield self._rest.decode("utf-8", "replace")
            self._rest = b""


def empty_when_large(path: Path) -> bool:
    """Empty a log that has grown over its limit; True when that was so. The server appends, so its next line lands at
    the new end."""
    if not path.is_file() or path.stat().st_size <= MOST_LOG_BYTES:
        return False
    os.truncate(path, 0)
    return True
