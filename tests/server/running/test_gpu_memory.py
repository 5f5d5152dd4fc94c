"""GPU memory by stage, as nvidia-smi and the log's process numbers tell it together."""

from __future__ import annotations

import os
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


@pytest.mark.parametrize("script", ["exit 9", "echo 'No devices were found'", "echo '[N/A], [N/A]'"])
def test_nothing_is_made_up_where_nobody_can_tell(
    server: ProcessId, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    smi(tmp_path, monkeypatch, script)
    assert gpu_memory.by_stage(ServerState(server=server)) == {}
