"""GPU memory by stage, as nvidia-smi and the log's process numbers tell it together."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from omni_app.server import gpu_memory, process
from omni_app.server.log import Stage
from omni_app.server.process import ProcessId
from omni_app.server.state import ServerState


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ProcessId]:
    child, identity = process.start(["sleep", "600"], dict(os.environ), tmp_path / "log")
    yield identity
    child.kill()
    child.wait()


def smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_memory_goes_to_the_stage_of_the_process(
    server: ProcessId, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(tmp_path, monkeypatch, f"printf '1, 999\\n{server.pid}, 20480\\nbroken\\n'")
    thinker = ServerState(server=server, stages=(Stage(number=0, pid=server.pid),))
    assert gpu_memory.by_stage(thinker) == {"thinker": 20.0}
    assert gpu_memory.by_stage(ServerState(server=server)) == {"other": 20.0}
    assert gpu_memory.by_stage(ServerState()) == {}


def test_a_stage_on_two_gpus_holds_what_its_workers_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["sh", "-c", "sleep 600 & echo $!; sleep 600 & echo $!; wait"]
    child, engine = process.start(command, dict(os.environ), tmp_path / "log")
    try:
        while len(workers := (tmp_path / "log").read_text().split()) < 2:
            time.sleep(0.01)
        rows = f"{workers[0]}, 30720\\n{workers[1]}, 30720\\n{workers[1]}, 512\\n"
        smi(tmp_path, monkeypatch, f"printf '{rows}'")
        state = ServerState(server=engine, stages=(Stage(number=0, pid=engine.pid),))
        assert gpu_memory.by_stage(state) == {"thinker": 60.5}
    finally:
        asyncio.run(process.end(engine, 5.0))
        child.wait()


@pytest.mark.parametrize("script", ["exit 9", "echo 'No devices were found'", "echo '[N/A], [N/A]'"])
def test_nothing_is_made_up_where_nobody_can_tell(
    server: ProcessId, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    smi(tmp_path, monkeypatch, script)
    assert gpu_memory.by_stage(ServerState(server=server)) == {}
