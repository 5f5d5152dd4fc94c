"""Everything that only a CUDA device can prove, with one command, no package index, and nothing left running.

    python -m tests.gpu.session --model /models/qwen3-omni-nvfp4 --serve-venv /opt/serve --out $OUT

starts the model with our own `serve`, puts it through the steps of `steps.py`, stops it, and leaves in OUT
`results.json` (all facts), `table.txt`, `spoken.wav` and `logs.tar.gz`. Each step is a process with a time limit of its
own, and one that does not hold keeps none of the others from running. `--variant codec_chunk_frames=10` starts the
server once more with that value and repeats `users`; `--variant switches=parallel,no-locks` starts it with those
switches, `--variant without=crowd-graphs` with all but that one. `--endpoint` puts a server that runs already through
the steps. It is run by the interpreter of the app; `--budget` is the time that it may take in all.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omni_app import hardware
from omni_app.server import gpu_memory, process
from omni_app.server.state import ServerFolder, ServerState
from tests.gpu import steps

Json = dict[str, Any]
LIMITS_S = {"speak": 60, "media": 120, "turns": 90, "voices": 60, "page": 180, "stop": 60, "users": 180}
SOAK_MORE_S = 60
STOP_S = 60.0
LOOK_S = 1.0
SPARE_S = 30.0
"""Kept of the budget for stopping and packing."""


@dataclass
class Session:
    given: argparse.Namespace
    work: Path
    ends: float
    results: Json = field(default_factory=dict)

    @property
    def left_s(self) -> float:
        return self.ends - time.monotonic() - SPARE_S

    def note(self, name: str, facts: Json) -> None:
        """Written at once: a session that is cut off leaves what it found."""
        self.results[name] = facts
        (self.given.out / "results.json").write_text(json.dumps(self.results, indent=1))
        held = "ok" if facts["ok"] else "FAILED"
        line = f"{name:40} {held:8} {facts['seconds']:7.1f} s  {facts.get('why', '')}"
        with (self.given.out / "table.txt").open("a") as table:
            table.write(line + "\n")
        print(line, flush=True)

    def step(self, name: str, called: str, endpoint: str) -> None:
        facts, began = self.work / f"{called.replace('=', '_').replace(' ', '_')}.json", time.monotonic()
        soak_s = min(self.given.seconds, max(0.0, self.left_s - SOAK_MORE_S))
        limit_s = min(soak_s + SOAK_MORE_S if name == "soak" else LIMITS_S[name], self.left_s)
        if limit_s < 1:
            return self.note(called, {"ok": False, "seconds": 0.0, "why": "no time was left (--budget)"})
        command = [
            sys.executable, "-m", "tests.gpu.steps", name, "--endpoint", endpoint, "--out", str(facts),
            "--data-dir", str(self.work / "data"), "--users", self.given.users, "--rounds", str(self.given.rounds),
            "--text-tokens", str(self.given.text_tokens), "--frames", str(self.given.frames),
            "--seconds", str(soak_s), "--soak-users", str(self.given.soak_users),
        ]  # fmt: skip
        why = run(command, facts.with_suffix(".log"), limit_s)
        found = json.loads(facts.read_text()) if facts.exists() else {"ok": False}
        if name == "soak" and soak_s < self.given.seconds:
            found["ok"] = False
            why = why or f"{self.given.seconds:.0f} s were asked for, {soak_s:.0f} were left (--budget)"
        return self.note(called, {**found, "seconds": time.monotonic() - began, "why": why})

    @contextmanager
    def served(self, called: str, command: list[str]) -> Iterator[str]:
        """The endpoint of a server that is started so; empty when it did not become ready."""
        log, began = self.work / f"{called.replace('=', '_').replace(' ', '_')}.log", time.monotonic()
        environ = {**os.environ, "OMNI_DATA_DIR": str(self.work / "data"), "OMNI_SERVE_PORT": str(self.given.port)}
        environ |= {"OMNI_CACHE_DIR": str(self.given.cache_dir), "OMNI_SERVE_VENV": str(self.given.serve_venv)}
        with log.open("wb") as output:
            child = subprocess.Popen(command, cwd=steps.ROOT, env=environ, stdout=output, stderr=output)
        try:
            state, peak_gib = self._until_ready(child)
            said = state.message or (log.read_text().splitlines() or [""])[-1]
            memory = {"memory_gib": gpu_memory.by_stage(state), "peak_gib_while_starting": peak_gib}
            told = {"state": state.model_dump(), **memory}
            ready = state.status == "ready"
            self.note(called, {"ok": ready, "seconds": time.monotonic() - began, "why": said, **told})
            yield state.endpoint if ready else ""
        finally:
            self._stop(called, child)

    def _until_ready(self, child: subprocess.Popen[bytes]) -> tuple[ServerState, float | None]:
        """The state that it came to, and the most GiB in use on all GPUs, looked at once a second."""
        folder = ServerFolder(self.work / "data")
        state, told, looked, peak_gib = ServerState(), "", 0.0, gpu_gib()
        while child.poll() is None and self.left_s > 0 and state.status != "ready":
            time.sleep(0.2)
            if time.monotonic() > looked + LOOK_S and (now_gib := gpu_gib()) is not None:
                looked, peak_gib = time.monotonic(), max(peak_gib or 0.0, now_gib)
            state = folder.read()
            if state.supervisor is None or state.supervisor.pid != child.pid:
                state = ServerState()  # of a server before this one
            if (words := "; ".join(line.strip() for line in state.lines())[:200]) != told and self.given.verbose:
                print(words, flush=True)
            told = words
        return state, peak_gib

    def _stop(self, called: str, child: subprocess.Popen[bytes]) -> None:
        server, began = ServerFolder(self.work / "data").read().server, time.monotonic()
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        left = process.members(server) if server else []
        facts = {"ok": not left, "seconds": time.monotonic() - began, "left": left, "status": child.returncode}
        self.note(f"stop of {called}", facts)


def new_folder(parser: argparse.ArgumentParser, out: Path) -> Path:
    """For what is left over, in `out`. Ends the program where an earlier session's lies."""
    work = out / "work"
    if work.exists():
        parser.error(f"{out} holds an earlier session; name another folder")
    work.mkdir(parents=True)
    return work


def gpu_gib() -> float | None:
    """In use on all GPUs by whatever runs there."""
    gpus = hardware.detect().gpus
    return sum(gpu.memory_total.value - gpu.memory_free.value for gpu in gpus) / hardware.GIB if gpus else None


def run(command: list[str], log: Path, limit_s: float) -> str:
    """Why it failed, in its last words; empty when it did not."""
    with log.open("wb") as output:
        try:
            status = subprocess.run(
                command, cwd=steps.ROOT, stdout=output, stderr=subprocess.STDOUT, timeout=limit_s, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return f"it did not end within {limit_s:.0f} s"
    print(log.read_text(errors="replace"), end="", flush=True)
    return (log.read_text(errors="replace").splitlines() or [""])[-1][:200] if status else ""


def _commands(given: argparse.Namespace) -> Iterator[tuple[str, list[str], list[str]]]:
    """A name, the command of a server, and the steps that it is put through."""
    most = max(map(int, given.users.split(",")))
    own = [sys.executable, "-m", "omni_app", "serve", str(given.model), f"--users={most}"]
    changed = [sys.executable, "-m", "tests.gpu.serve_variant", str(given.model), f"--users={most}"]
    changes = [f"--set={one}" for one in given.set] + ([f"--switches={given.switches}"] if given.switches else [])
    yield "serve", [*changed, *changes] if changes else own, given.steps.split(",")
    for variant in given.variant:
        change = f"--{variant}" if variant.startswith(("switches=", "without=")) else f"--set={variant}"
        yield f"serve {variant}", [*changed, *changes, change], ["users"]


def require_plans(given: argparse.Namespace) -> None:
    """Raises SystemExit where a variant cannot be planned, before the first server takes its minutes."""
    environ = {**os.environ, "OMNI_SERVE_VENV": str(given.serve_venv), "OMNI_DATA_DIR": str(given.out / "work/data")}
    for called, command, _ in _commands(given):
        if "tests.gpu.serve_variant" in command:
            told = subprocess.run(
                [*command, "--only-plan"], cwd=steps.ROOT, env=environ, capture_output=True, text=True, check=False
            )
            if told.returncode:
                raise SystemExit(f"{called}: {(told.stderr.splitlines() or ['it cannot be planned'])[-1]}")


def play(session: Session) -> None:
    given = session.given
    if given.endpoint:
        for step in given.steps.split(","):
            session.step(step, step, given.endpoint)
        return
    for called, command, wanted in _commands(given):
        if session.left_s <= 0:
            session.note(called, {"ok": False, "seconds": 0.0, "why": "no time was left (--budget)"})
            continue
        with session.served(called, command) as endpoint:
            for step in wanted if endpoint else ():
                session.step(step, called.replace("serve", step, 1) if called != "serve" else step, endpoint)


def pack(session: Session) -> None:
    """Logs, plans and the sound: few files, as a lent machine gives back only few."""
    with tarfile.open(session.given.out / "logs.tar.gz", "w:gz") as tar:
        wanted = [*session.work.glob("*.log"), *(session.work / "data/server").glob("*")]
        for path in sorted(wanted):
            if path.is_file():
                tar.add(path, path.relative_to(session.work))
    if (sound := session.work / "speak.wav").exists():
        (session.given.out / "spoken.wav").write_bytes(sound.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[steps.parser()]
    )
    parser.add_argument("--model", type=Path, help="folder of the model to serve")
    parser.add_argument("--endpoint", default="", help="a server that runs already, instead")
    parser.add_argument("--serve-venv", type=Path, default=steps.ROOT / ".venv-serve")
    parser.add_argument("--port", type=int, default=8091)
    parser.add_argument("--cache-dir", type=Path, default=Path("/tmp/omni-cache"), help="bring it along: a warm start")
    parser.add_argument("--steps", default=",".join(name for name in steps.STEPS if name != "soak"))
    parser.add_argument("--switches", default="", help="of fast_start.py, in place of the plan's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="in the plan; see serve_variant"
    )
    parser.add_argument("--variant", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--budget", type=float, default=1800.0, help="seconds for everything (default 1800)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--verbose", action="store_true", help="tell how the start goes on")
    given = parser.parse_args()
    if unknown := set(given.steps.split(",")) - set(steps.STEPS):
        parser.error(f"unknown steps: {', '.join(sorted(unknown))}; known: {', '.join(steps.STEPS)}")
    if bool(given.model) == bool(given.endpoint):
        parser.error("name either --model or --endpoint")
    session = Session(given, new_folder(parser, given.out), time.monotonic() + given.budget)
    if given.model:
        require_plans(given)
    try:
        play(session)
    finally:
        pack(session)
    raise SystemExit(0 if all(facts["ok"] for facts in session.results.values()) else 1)


if __name__ == "__main__":
    main()
