"""The server as the app starts, finds and stops it."""

from __future__ import annotations

import json
import signal
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from omni_app import engines
from omni_app.errors import EngineUnavailable
from omni_app.server import process
from omni_app.server.control import ServerControl, with_own_server
from omni_app.server.prepare import Order
from omni_app.server.state import ServerFolder, ServerState
from omni_app.server.supervisor import Launch
from omni_app.settings import Settings
from tests.server.fake_vllm import Script
from tests.server.running.conftest import watched

pytestmark = pytest.mark.anyio


async def test_an_app_that_starts_again_talks_to_the_server_that_runs(launch: Launch, folder: ServerFolder) -> None:
    settings = Settings(data_dir=folder.path.parent)
    assert with_own_server(settings) == (settings, "")
    async with watched(launch, folder) as one:
        await one.until(lambda state: state.status == "ready")
        found, because = with_own_server(settings)
        assert found.endpoint == launch.endpoint
        assert found.local_media is None
        assert "this data folder" in because
        assert engines.choose(found)[0].name == "vllm-omni"
        for other in ({"engine": "builtin"}, {"endpoint": "http://elsewhere"}):
            chosen = settings.model_copy(update=other)
            assert with_own_server(chosen) == (chosen, "")
    assert with_own_server(settings) == (settings, "")


async def test_a_server_that_may_read_visitors_media_is_known_to(launch: Launch, folder: ServerFolder) -> None:
    async with watched(replace(launch, local_media="/data/visitors"), folder) as one:
        await one.until(lambda state: state.status == "ready")
        found, _ = with_own_server(Settings(data_dir=folder.path.parent))
        assert found.local_media == Path("/data/visitors")


@pytest.fixture
def control(venv: Path, free_port: int, tmp_path: Path) -> ServerControl:
    return ServerControl(Settings(data_dir=tmp_path / "data", serve_venv=venv, serve_port=free_port, api_key="secret"))


@pytest.fixture
def order(tmp_path: Path) -> Order:
    (tmp_path / "own.yaml").touch()
    return Order(Path("/models/omni"), deploy_config=tmp_path / "own.yaml")


async def test_the_server_is_told_of_from_the_first_moment_and_stopped_before_it_is_ready(
    control: ServerControl, order: Order
) -> None:
    control.start(order)
    assert control.state().status == "starting"
    with pytest.raises(EngineUnavailable, match="already"):
        control.start(order)
    await control.stop()
    state = control.state()
    assert not state.works
    assert state.server is None


async def test_what_stops_the_supervisor_early_is_told(
    control: ServerControl, order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.start(replace(order, deploy_config=tmp_path / "none.yaml"))
    assert control._child is not None
    control._child.wait(60)
    assert control.state().status == "failed"
    assert "none.yaml does not exist" in control.state().message


async def test_a_server_that_a_terminal_started_is_told_of_after_an_own_one_failed(
    control: ServerControl, order: Order, tmp_path: Path, launch: Launch, folder: ServerFolder
) -> None:
    control.start(replace(order, deploy_config=tmp_path / "none.yaml"))
    assert control._child is not None
    control._child.wait(60)
    async with watched(launch, folder) as one:
        await one.until(lambda state: state.status == "ready")
        assert control.state().status == "ready"
        with pytest.raises(EngineUnavailable, match="ready already"):
            control.start(order)


async def test_stopping_ends_a_server_that_is_starting(
    control: ServerControl, order: Order, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starts = tmp_path / "starts"
    monkeypatch.setenv("FAKE_VLLM", json.dumps(asdict(Script(starts_file=str(starts)))))
    control.start(order)
    while not starts.exists():
        assert control.state().works
    server = control.folder.read().server
    await control.stop()
    assert control.state().status == "stopped"
    assert server is None or process.members(server) == []


def test_the_page_can_start_again_after_a_supervisor_that_died(control: ServerControl) -> None:
    left = subprocess.Popen(["sleep", "600"], start_new_session=True)
    server = process.identify(left.pid)
    gone = server.model_copy(update={"started_ticks": server.started_ticks - 1})
    control.folder.write(ServerState(status="starting", supervisor=gone, server=server))
    assert control.state().status == "failed"
    control.make_room()
    assert left.wait(10) == -signal.SIGTERM
