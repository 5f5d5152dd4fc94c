"""A full disk and a killed worker, really: each ends in one sentence, leaves nothing, and the source untouched."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from quantize import environment, job
from quantize.schemes import Recipe
from tests.quantize.job_steps import Command, started, until

pytestmark = [pytest.mark.quantize, pytest.mark.timeout(600)]
OWN_DISK = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]


@pytest.fixture
def read_only(tiny_omni: Path, tmp_path: Path) -> Path:
    source = Path(shutil.copytree(tiny_omni, tmp_path / "source"))
    for path in [*source.iterdir(), source]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return source


def digest(source: Path) -> str:
    """Of every name, byte and time of change."""
    held = hashlib.sha256()
    for file in sorted(source.iterdir()):
        held.update(f"{file.name} {file.stat().st_mtime_ns}".encode() + file.read_bytes())
    return held.hexdigest()


def test_disk_that_runs_full_in_mid_save(read_only: Path, tmp_path: Path) -> None:
    disk, before = tmp_path / "disk", digest(read_only)
    disk.mkdir()
    if subprocess.run([*OWN_DISK, f"mount -t tmpfs tmpfs {disk}"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a disk of their own")
    run = [sys.executable, "-m", "quantize", "run", read_only, disk / "out", "--jobs", tmp_path / "jobs"]
    script = f"""
        mount -t tmpfs -o size=8m tmpfs {disk}
        (until [ -d {disk}/out.partial ]; do sleep 0.01; done; head -c 8M /dev/zero > {disk}/others) &
        {shlex.join(map(str, run))}; echo "code $?"; ls {disk}"""
    ended = subprocess.run([*OWN_DISK, script], cwd=environment.ROOT, capture_output=True, text=True, check=False)
    *_, state, code, left = ended.stdout.strip().splitlines()
    assert (code, left) == ("code 1", "others")
    assert "ran full while writing; free some space" in json.loads(state)["message"]
    assert digest(read_only) == before


def test_worker_that_the_system_kills(read_only: Path, tmp_path: Path, command: Command) -> None:
    before, out = digest(read_only), tmp_path / "out"
    one = job.create(tmp_path / "jobs", job.Request(str(read_only), str(out), Recipe("NVFP4A16", "mse")))
    supervisor = started(command("run", "--job", one.folder))
    until(lambda: one.progress is not None and one.progress.stage == "quantize", 120)
    (worker,) = psutil.Process(supervisor.pid).children()
    worker.kill()
    assert supervisor.wait(60) == 1
    assert "memory ran out" in one.state.message
    assert not list(tmp_path.glob("out*"))
    assert digest(read_only) == before
