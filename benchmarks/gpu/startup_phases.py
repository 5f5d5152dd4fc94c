"""Turn a vLLM-Omni start-up log into a table of seconds per stage and phase.

    python startup_phases.py server.log [--json phases.json]

The log has whole seconds, so each figure is good to about one second. A phase ends with the line that it is known by.
The first phase of each stage is counted from the start of the log: stages that start one after the other wait in it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

STAMP = re.compile(r"\b(\d\d-\d\d \d\d:\d\d:\d\d)\b")
STAGE = re.compile(r"StageEngineCoreProc_stage(\d+)_")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
NAMES = {"0": "thinker", "1": "talker", "2": "code2wav"}

# What a line says -> the phase that it ends. The first line of each kind counts, in this order of time.
STAGE_MARKS = (
    ("process start and imports", "Initializing a V1 LLM engine"),
    ("device, processor and tokenizer", "Starting to load model"),
    ("weights", "Model loading took"),
    ("wait for other stages", "memory profiling for multimodal encoder"),
    ("wait for other stages", "Encoder cache will be initialized"),
    ("speech code predictor", "code_predictor: torch.compile"),
    ("graph tracing", "Dynamo bytecode transform time"),
    ("compile", "torch.compile took"),
    ("first run and profiling", "GPU KV cache size"),
    ("KV cache", "JIT kernel warmup starting"),
    ("JIT kernel warm-up", "JIT kernel warmup finished"),
    ("other kernel warm-up", "Torch profiler disabled for CUDA graph capture"),
    ("graph capture", "Graph capturing finished"),
    ("rest of the engine", "init engine (profile, create kv cache, warmup model) took"),
)
SERVER_MARKS = (
    ("imports and arguments", "vLLM server version"),
    ("stage configuration", "Launching Orchestrator thread"),
    ("stages", "Orchestrator ready with"),
    ("API warm-up", "Application startup complete"),
)


@dataclass
class Timeline:
    """The marks seen for one process, in the order of the log, and what the lines themselves report."""

    marks: list[tuple[str, datetime]] = field(default_factory=list)
    reported: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, at: datetime) -> None:
        if name not in (known for known, _ in self.marks):
            self.marks.append((name, at))

    def phases(self, started: datetime) -> dict[str, float]:
        spans: dict[str, float] = {}
        last = started
        for name, at in self.marks:
            spans[name] = (at - last).total_seconds()
            last = at
        return spans


def read_lines(path: Path) -> list[str]:
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    return COLOUR.sub("", data.decode(errors="replace")).splitlines()


def parse(lines: list[str], year: int = 2000) -> tuple[datetime, dict[str, Timeline]]:
    """The first time in the log, and a timeline for the server and for each stage."""
    timelines: dict[str, Timeline] = {"server": Timeline()}
    first: datetime | None = None
    for line in lines:
        if not (stamp := STAMP.search(line)):
            continue
        at = datetime.strptime(f"{year}-{stamp[1]}", "%Y-%m-%d %H:%M:%S")
        first = first or at
        stage = STAGE.search(line)
        key = f"{stage[1]} {NAMES.get(stage[1], '')}".strip() if stage else "server"
        timeline = timelines.setdefault(key, Timeline())
        for name, words in STAGE_MARKS if stage else SERVER_MARKS:
            if words in line:
                timeline.note(name, at)
                timeline.reported.setdefault(name, line[line.index(words) :][:160])
    if first is None:
        raise SystemExit("no time stamps found in the log")
    return first, timelines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="start-up log, plain or .gz")
    parser.add_argument("--json", type=Path, help="also write the table as JSON")
    options = parser.parse_args()
    started, timelines = parse(read_lines(options.log))
    table: dict[str, dict[str, dict[str, float]]] = {}
    for key in sorted(timelines):
        timeline = timelines[key]
        spans = timeline.phases(started)
        print(f"\n{key}")
        print(f"  {'phase':34s} {'seconds':>8s} {'ends at':>8s}")
        table[key] = {}
        for name, at in timeline.marks:
            end = (at - started).total_seconds()
            table[key][name] = {"seconds": spans[name], "ends_at": end}
            print(f"  {name:34s} {spans[name]:8.0f} {end:8.0f}  {timeline.reported.get(name, '')[:90]}")
    if options.json:
        options.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
