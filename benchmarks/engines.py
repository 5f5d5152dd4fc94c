"""All engines in one table: memory, first text, tokens/s, speech. `python -m benchmarks.engines [--out FILE.json]`.

Each engine runs in a process of its own. Where OMNI_ENDPOINT is set, the engines that talk to a server are measured
against that one; else `openai-compatible` against this app's own API over the builtin engine, so that its row is the
builtin row and what HTTP adds. An engine that cannot run here has an empty row, and the reason. One whose packages
lie in another environment: `--python transformers=ENVIRONMENT/bin/python`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path

from omni_app.conversation import Message, ReplyOptions
from omni_app.engines import SPECS
from omni_app.engines.base import Engine
from omni_app.errors import OmniError
from omni_app.meter import ReplyFigures, ReplyMeter
from omni_app.settings import Settings

QUESTIONS = ("Why is the sky blue?", "How does bread rise?", "What do bees make?")
TOKENS = 64
ROW_SECONDS = 900
REMOTE = ("vllm-omni", "openai-compatible")
NO_SERVER = "OMNI_ENDPOINT names no server."
OVER_OWN_API = "over this app's own API, the builtin engine behind it; memory of both"


@dataclass(frozen=True, slots=True)
class Row:
    """One engine; medians over `QUESTIONS`, None where there is nothing to measure."""

    engine: str
    model: str = ""
    start_s: float | None = None
    first_text_s: float | None = None
    first_sound_s: float | None = None
    tokens_per_second: float | None = None
    real_time_factor: float | None = None
    """Of the speech; below 1 it is faster than it plays."""
    memory_gb: float | None = None
    """Most that its processes held on this machine, shared pages once (PSS); a server's GPU is not in it."""
    why: str = ""
    """Why the row is empty, or what its figures mean."""


async def measure(name: str) -> Row:
    """One engine in this process."""
    settings = Settings()
    engine = SPECS[name].create(settings)
    began = time.monotonic()
    try:
        await engine.start()
        started = time.monotonic() - began
        await _answer(engine, QUESTIONS[0])  # the first one pays for what is made at first use
        figures = [await _answer(engine, question) for question in QUESTIONS]
    except OmniError as error:
        return Row(name, why=str(error))
    finally:
        await engine.close()
    return _row(name, engine.status().model, started, figures)


async def _answer(engine: Engine, question: str) -> ReplyFigures:
    meter = ReplyMeter()
    options = ReplyOptions(speech=engine.status().speaks, max_tokens=TOKENS, temperature=0.0)
    async with aclosing(engine.reply([Message.of("user", question)], options)) as events:
        async for event in events:
            meter.observe(event)
    return meter.figures()


def _row(name: str, model: str, start_s: float, figures: Sequence[ReplyFigures]) -> Row:
    def median(values: Iterator[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return round(statistics.median(known), 4) if known else None

    return Row(
        name, Path(model).name, round(start_s, 2),
        median(one.first_text_s for one in figures),
        median(one.first_sound_s for one in figures),
        median(one.tokens_per_second for one in figures),
        median(one.real_time_factor for one in figures),
    )  # fmt: skip


def in_its_own_process(name: str, python: str, **environment: str) -> Row:
    """`measure` in a child, with the memory that it and its children held."""
    from benchmarks.talk import PeakMemory

    command = [python, "-m", "benchmarks.engines", "--measure", name]
    child = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    memory = PeakMemory(child.pid)
    try:
        said, trouble = child.communicate(timeout=ROW_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return Row(name, why=f"It was not done after {ROW_SECONDS} s.")
    finally:
        memory.close()
    if child.returncode:
        return Row(name, why=(trouble.decode(errors="replace").strip().splitlines() or ["It said nothing."])[-1])
    found = json.loads(said.splitlines()[-1])
    return Row(**found | ({} if found["why"] else {"memory_gb": round(memory.peak_bytes / 1e9, 3)}))


def over_own_api(name: str, python: str) -> Row:
    from benchmarks.talk import RunningApp

    with tempfile.TemporaryDirectory() as folder, contextlib.closing(RunningApp(Path(folder))) as app:
        app.wait("health", limit_seconds=300)
        row = in_its_own_process(name, python, OMNI_ENDPOINT=app.url)
    both = round((row.memory_gb or 0) + app.memory.peak_bytes / 1e9, 3)
    return Row(**asdict(row) | ({} if row.why else {"memory_gb": both, "why": OVER_OWN_API}))


def rows(pythons: dict[str, str], names: Sequence[str]) -> Iterator[Row]:
    for name in names:
        python = pythons.get(name, sys.executable)
        if name not in REMOTE or os.environ.get("OMNI_ENDPOINT"):
            yield in_its_own_process(name, python)
        elif name == "openai-compatible":
            yield over_own_api(name, python)
        else:
            yield Row(name, why=NO_SERVER)


def table(found: Sequence[Row]) -> str:
    columns = ("engine", "model", "memory", "first text", "first sound", "tokens/s", "speech RTF", "")
    lines = [columns, ("---", "---", *["---:"] * 5, "---")]
    for row in found:
        cells = (
            ("{:.2f} GB", row.memory_gb), ("{:.3f} s", row.first_text_s), ("{:.3f} s", row.first_sound_s),
            ("{:.1f}", row.tokens_per_second), ("{:.2f}", row.real_time_factor),
        )  # fmt: skip
        figures = [form.format(value) if value is not None else "" for form, value in cells]
        lines.append((row.engine, row.model, *figures, row.why))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, help="write the table to this file, as JSON")
    parser.add_argument("--engine", action="append", choices=sorted(SPECS), help="only this one; may be repeated")
    parser.add_argument("--python", action="append", default=[], metavar="ENGINE=PATH", help="its interpreter")
    parser.add_argument("--measure", choices=sorted(SPECS), help="one engine in this process, as JSON")
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(asdict(asyncio.run(measure(asked.measure)))))
        return
    pythons = dict(one.split("=", 1) for one in asked.python)
    found = list(rows(pythons, asked.engine or sorted(SPECS)))
    print(table(found))
    if asked.out:
        report = {"machine": platform.platform(), "cores": os.cpu_count(), "engines": [asdict(row) for row in found]}
        asked.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
