"""Jobs that tests make, begin and wait for."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from quantize import environment, job
from quantize.job import Job, Request
from quantize.schemes import Recipe

Stand = Callable[[str], None]
Command = Callable[..., list[str]]
BEGIN = [
    sys.executable,
    "-c",
    "import sys; from pathlib import Path; from quantize import folder; folder.begin(*map(Path, sys.argv[1:]))",
]
"""With source and output: a process that begins the output's folder."""


def begun(tmp_path: Path) -> None:
    """What a worker that has ended leaves of `out`."""
    subprocess.run([*BEGIN, tmp_path / "source", tmp_path / "out"], cwd=environment.ROOT, check=True)


def made(tmp_path: Path, name: str = "out") -> Job:
    return job.create(tmp_path / "jobs", Request(str(tmp_path / "source"), str(tmp_path / name), Recipe("NVFP4A16")))


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def started(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, cwd=environment.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
