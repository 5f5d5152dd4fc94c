"""The same questions to the same model in several formats and engines, one after the other, as one table.

    python -m tests.gpu.side_by_side --out $OUT --transformers-python /opt/omni/tf/bin/python \\
        --serve nvfp4=/models/nvfp4 --serve fp8=/models/fp8 --serve bf16=/models/bf16 \\
        --transformers bf16=/models/bf16 --transformers nf4=/models/bf16

Each is started for one user and text alone, measured by `python -m omni_app bench`, and stopped. OUT gets NAME.json of
each, `table.md`, and what `session.py` leaves. The first named counts as 1 in the column of speed-ups. `--without
no-states` starts each of --serve once more without that switch of the quick start.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omni_app.versus import Summary, summary_of, table
from tests.gpu import steps
from tests.gpu.session import LIMITS_S, Session, gpu_gib, new_folder, pack, run

PORT = 7871
TEXT_ONLY = ("--users=1", "--no-speech")


def named(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=FOLDER")
    return name, Path(folder)


@contextmanager
def in_process(session: Session, called: str, precision: str, model: Path) -> Iterator[str]:
    """The endpoint of an app whose own process holds the model; empty when it did not become ready."""
    data, log = session.work / "data-transformers", session.work / f"{called}.log"
    command = [
        str(session.given.transformers_python), "-m", "omni_app", "run", f"--port={PORT}", f"--data-dir={data}",
        "--engine=transformers", f"--transformers-model={model}", f"--transformers-precision={precision}",
        "--no-transformers-talker",
    ]  # fmt: skip
    began, url = time.monotonic(), f"http://127.0.0.1:{PORT}"
    environ = {name: value for name, value in os.environ.items() if name != "OMNI_ENDPOINT"}
    with log.open("wb") as output:
        app = subprocess.Popen(command, cwd=steps.ROOT, env=environ, stdout=output, stderr=output)
    try:
        ready = steps.until_healthy(url, app, session.left_s)
        why = "" if ready else (log.read_text(errors="replace").splitlines() or [""])[-1][:200]
        session.note(called, {"ok": ready, "seconds": time.monotonic() - began, "why": why, "gpu_gib": gpu_gib()})
        yield url if ready else ""
    finally:
        app.terminate()
        app.wait(60)


def measure(session: Session, name: str, endpoint: str) -> None:
    """Ask it, and note the row of the table."""
    given, out = session.given, session.given.out / f"{name}.json"
    began, log = time.monotonic(), session.work / f"bench-{name}.log"
    exactly = json.dumps({"min_tokens": given.text_tokens, "ignore_eos": True})
    command = [
        sys.executable, "-m", "omni_app", "bench", f"--endpoint={endpoint}", f"--data-dir={session.work / 'data'}",
        "--users=[1]", f"--rounds={given.rounds}", f"--tokens={given.text_tokens}", "--no-speech",
        f"--extra={exactly}", f"--out={out}",
    ]  # fmt: skip
    why = run(command, log, min(LIMITS_S["users"], session.left_s))
    facts = {"ok": not why, "seconds": time.monotonic() - began, "why": why, "gpu_gib": gpu_gib()}
    session.note(f"bench {name}", facts | ({"summary": summary_of(out).model_dump()} if out.exists() else {}))


def serves(given: argparse.Namespace) -> Iterator[tuple[str, Path, list[str]]]:
    """A name, a model, and what serves it."""
    for name, model in given.serve:
        yield name, model, ["omni_app", "serve"]
        if given.without:
            yield f"{name}-without-{given.without}", model, ["tests.gpu.serve_variant", f"--without={given.without}"]


def play(session: Session) -> None:
    for name, model, command in serves(session.given):
        with session.served(f"serve {name}", [sys.executable, "-m", *command, str(model), *TEXT_ONLY]) as endpoint:
            if endpoint:
                measure(session, name, endpoint)
    for precision, model in session.given.transformers:
        name = f"transformers-{precision}"
        with in_process(session, name, precision, model) as endpoint:
            if endpoint:
                measure(session, name, endpoint)


def rows(session: Session) -> list[Summary]:
    """Of those that were measured, under the names given here; memory as the GPU tells it."""
    found = []
    for name, facts in session.results.items():
        if "summary" in facts:
            changes = {"name": name.removeprefix("bench "), "memory_gib": facts["gpu_gib"]}
            found.append(Summary.model_validate(facts["summary"] | changes))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", type=named, action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--transformers", type=named, action="append", default=[], metavar="PRECISION=FOLDER")
    parser.add_argument("--without", default="", metavar="SWITCHES")
    parser.add_argument("--serve-venv", type=Path, default=steps.ROOT / ".venv-serve")
    parser.add_argument("--transformers-python", type=Path, default=steps.ROOT / ".venv-transformers/bin/python")
    parser.add_argument("--port", type=int, default=8091)
    parser.add_argument("--cache-dir", type=Path, default=Path("/tmp/omni-cache"))
    parser.add_argument("--text-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=1200.0, help="seconds for everything")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--verbose", action="store_true", help="tell how the starts go on")
    given = parser.parse_args()
    if not (given.serve or given.transformers):
        parser.error("name at least one --serve or --transformers")
    session = Session(given, new_folder(parser, given.out), time.monotonic() + given.budget)
    try:
        play(session)
    finally:
        pack(session)
    if measured := rows(session):
        (given.out / "table.md").write_text(table(measured) + "\n")
        print((given.out / "table.md").read_text())
    raise SystemExit(0 if all(facts["ok"] for facts in session.results.values()) else 1)


if __name__ == "__main__":
    main()
