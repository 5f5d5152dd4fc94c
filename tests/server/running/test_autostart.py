"""A model served with the start of the app, or the reason why not. The server is the stand-in for `vllm`, and the GPU
is in the words of an nvidia-smi of this test's own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from omni_app.runner import Runner
from omni_app.server import autostart
from omni_app.server.control import ServerControl, with_own_server
from omni_app.server.state import ServerFolder
from omni_app.settings import Settings
from omni_app.ui.launch import serve_from_the_start
from tests.scripted import ScriptedEngine

pytestmark = pytest.mark.anyio
H100 = "0, GPU-5d1f7a, NVIDIA H100 80GB HBM3, 81559, 80994, 9.0, 580.95.05"
SMALL = "0, GPU-5d1f7a, NVIDIA T4, 15360, 15000, 7.5, 580.95.05"


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def says(row: str) -> None:
        command = tmp_path / "bin/nvidia-smi"
        command.parent.mkdir(exist_ok=True)
        command.write_text(f"#!/bin/sh\necho '{row}'\n")
        command.chmod(0o755)
        monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")

    return says


@pytest.fixture
def settings(venv: Path, free_port: int, folder: ServerFolder, folder_of: Callable[[str], Path]) -> Settings:
    model = str(folder_of("nvfp4"))
    return Settings(data_dir=folder.path.parent, serve_venv=venv, serve_port=free_port, serve_model=model)


async def test_a_gpu_that_fits_serves_it_and_the_app_can_move_there(
    settings: Settings, gpu: Callable[[str], None]
) -> None:
    gpu(H100)
    runner = Runner(ScriptedEngine(), "No server is named.", 4)
    await serve_from_the_start(settings, runner)
    try:
        assert "is being loaded on the NVIDIA H100 80GB HBM3" in runner.chosen_because
        async with asyncio.timeout(60):
            while not with_own_server(settings)[1]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert with_own_server(settings)[0].endpoint == f"http://127.0.0.1:{settings.serve_port}"
        assert autostart.begin(settings) == ""
    finally:
        await ServerControl(settings).stop()


@pytest.mark.parametrize(
    ("row", "changed", "says"),
    [
        ("", {}, "needs a GPU, and there is none"),
        (SMALL, {}, "cannot be served here"),
        (H100, {"serve_model": "/nowhere"}, "cannot be served here: /nowhere"),
        (H100, {"serve_venv": Path("/nowhere")}, "vLLM is not installed in /nowhere"),
        (H100, {"serve_venv": Path("/nowhere"), "serve_model": "/nowhere"}, "cannot be served here: /nowhere"),
        (SMALL, {"serve_venv": Path("/nowhere")}, "compute capability 7.5"),
        (H100, {"serve_model": ""}, None),
        (H100, {"endpoint": "http://elsewhere:8091"}, None),
        (H100, {"engine": "builtin"}, None),
    ],
)
def test_otherwise_it_says_why_and_starts_nothing(
    row: str, changed: dict[str, object], says: str | None, settings: Settings, gpu: Callable[[str], None]
) -> None:
    gpu(row)
    said = autostart.begin(settings.model_copy(update=changed))
    assert said == "" if says is None else says in said
    assert not ServerControl(settings).state().works
