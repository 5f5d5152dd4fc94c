"""The quantizer at the left of a pipe whose reader, such as `head`, has had enough: it ends without a word."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quantize import environment
from quantize.job import Status
from tests.quantize.job_steps import Stand, made


def unread(*command: object, at_once: bool = False) -> tuple[int, str]:
    """Exit status, and what stands on the terminal, when nobody reads its output."""
    read, write = os.pipe()
    os.close(read)
    asked, variables = [sys.executable, "-m", *map(str, command)], {"PYTHONUNBUFFERED": "1" * at_once}
    ended = subprocess.run(
        asked, cwd=environment.ROOT, env={**os.environ, **variables}, stdout=write, stderr=subprocess.PIPE, text=True,
        check=False,
    )  # fmt: skip
    os.close(write)
    return ended.returncode, ended.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["quantize", "schemes"],
        ["quantize", "--help"],
        ["quantize", "card", "/nothing/here"],
        ["quantize.convert", "/nothing/here", "/nothing/there"],
        ["quantize.worker", "verify", "/nothing/here"],
    ],
)
def test_what_nobody_reads_ends_without_a_word(command: list[str]) -> None:
    code, said = unread(*command)
    assert code == 1
    assert not re.search("Traceback|BrokenPipe", said)


def test_what_is_written_at_once_ends_so_too() -> None:
    assert unread("quantize", "schemes", at_once=True) == (1, "")


def test_a_job_whose_progress_nobody_reads_is_done_all_the_same(tmp_path: Path, python_as_worker: Stand) -> None:
    line = '{"stage": "quantize", "done": 1, "total": 2, "layer": "", "seconds_left": null, "ram_bytes": 0, "time": 0}'
    job = made(tmp_path)
    python_as_worker(f"echo '{line}' >> {job.folder}/progress.jsonl; exit 0")
    assert unread("quantize", "run", "--job", job.folder) == (1, "")
    assert job.state.status is Status.DONE
