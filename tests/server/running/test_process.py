"""The supervisor against a stand-in server: good and bad starts, crashes, stops, and a server that is found again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from omni_app.errors import EngineUnavailable
from omni_app.server import process
from omni_app.server.process import ProcessId
from omni_app.server.state import ServerFolder, ServerState
from omni_app.server.supervisor import Launch, make_room, stop
from tests.server.fake_vllm import Script
from tests.server.running.conftest import HASTE, scripted, watched

pytestmark = pytest.mark.anyio


def ready(state: ServerState) -> bool:
    return state.status == "ready"


async def asked(launch: Launch, path: str) -> int:
    """The HTTP status of a page of the server."""
    async with httpx.AsyncClient(base_url=launch.endpoint, trust_env=False) as client:
        return (await client.get(path)).status_code


async def test_good_start_is_told_in_words_warmed_up_and_stopped_to_the_last_process(
    launch: Launch, folder: ServerFolder
) -> None:
    async with watched(launch, folder) as one:
        state = await one.until(ready)
        assert state.server is not None
        assert len(process.members(state.server)) == 4
        assert await asked(launch, "/health") == 200
        one.supervisor.ask_to_stop()
        await one.running
        assert process.members(state.server) == []
    statuses = list(dict.fromkeys(state.status for state in one.states))
    assert statuses == ["starting", "warming up", "ready", "stopping", "stopped"]
    warmed = [state.message for state in one.states if state.status == "warming up"]
    assert warmed == [
        "Warming up: text and speech.", "Warming up: picture.", "Warming up: sound.", "Warming up: 2 users at once.",
    ]  # fmt: skip
    assert [stage.name for stage in state.stages] == ["thinker", "talker", "code2wav"]
    assert all("ready" in line for line in state.lines()[1:])
    assert folder.read().status == "stopped"


async def test_cold_and_warm_starts_are_remembered_for_a_model(launch: Launch, folder: ServerFolder) -> None:
    compiles = Script(says="Compiling a graph for compile range (1, 8192) takes 103.39 s")
    for script in (compiles, Script()):
        async with watched(scripted(launch, script), folder) as one:
            state = await one.until(ready)
        assert ("compiled kernels anew" in state.message) is (script is compiles)
    kept = folder.read()
    assert kept.cold_start_s is not None
    assert kept.warm_start_s is not None
    async with watched(replace(launch, model="/models/other"), folder) as one:
        assert (await one.until(ready)).cold_start_s is None


async def test_phases_appear_while_the_server_starts(launch: Launch, folder: ServerFolder) -> None:
    async with watched(launch, folder) as one:
        await one.until(ready)
    phases = {stage.phase for state in one.states for stage in state.stages[:1]}
    assert {"importing", "ready"} <= phases
    assert len(phases) >= 4


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (Script("vllm030_bad_batched_tokens", exit_code=1), "16384 tokens a batch"),
        (Script("vllm026_wrong_tensor_parallel", exit_code=1), "More GPUs were asked for"),
        (
            Script("vllm030_thinker_then_stopped", says="OSError: [Errno 98] Address already in use", exit_code=1),
            "--serve-port",
        ),
    ],
)
async def test_a_start_that_cannot_succeed_is_not_tried_again(
    launch: Launch, folder: ServerFolder, tmp_path: Path, script: Script, sentence: str
) -> None:
    starts = tmp_path / "starts"
    async with watched(scripted(launch, replace(script, starts_file=str(starts))), folder) as one:
        said = await one.failed()
    assert sentence in said
    assert len(starts.read_text().splitlines()) == 1
    assert (folder.read().status, folder.read().message) == ("failed", said)


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (Script("vllm026_cold_init_timeout", exit_code=1), "within its own limit of 600 s"),
        (Script("vllm030_thinker_then_stopped", exit_code=-signal.SIGTERM), "stopped from outside"),
        (Script("vllm030_thinker_then_stopped", exit_code=-signal.SIGKILL), "main memory ran out"),
        (
            Script("vllm030_thinker_then_stopped", says="ValueError: nobody knows this", exit_code=1),
            "nobody knows this",
        ),
    ],
)
async def test_three_restarts_and_then_the_reason(
    launch: Launch, folder: ServerFolder, tmp_path: Path, script: Script, sentence: str
) -> None:
    starts = tmp_path / "starts"
    async with watched(scripted(launch, replace(script, starts_file=str(starts))), folder) as one:
        said = await one.failed()
    assert sentence in said
    assert "3 times" in said
    assert len(starts.read_text().splitlines()) == 4
    assert [state.restarts for state in one.states if state.status == "pausing"] == [0, 1, 2]


@pytest.mark.parametrize("says", ["RuntimeError: the fake engine fell over", "OutOfMemoryError: CUDA out of memory."])
async def test_a_crash_after_ready_is_followed_by_a_restart(
    launch: Launch, folder: ServerFolder, tmp_path: Path, says: str
) -> None:
    crash = tmp_path / "crash"
    script = Script(crash_file=str(crash), crash_says=f"(APIServer pid=1) {says}")
    async with watched(scripted(launch, script), folder) as one:
        first = await one.until(ready)
        crash.touch()
        paused = await one.until(lambda state: state.status == "pausing")
        assert paused.message.endswith("Starting again in 0.01 s (1 of 3).")
        second = await one.until(ready)
    assert second.restarts == 1
    assert first.server != second.server


async def test_a_warm_up_that_is_refused_says_so_and_is_not_tried_again(launch: Launch, folder: ServerFolder) -> None:
    script = Script(refuses="default chat template is no longer allowed, so you must provide a chat template")
    async with watched(scripted(launch, script), folder) as one:
        assert "chat_template.json" in await one.failed()


async def test_processes_that_ignore_the_request_are_killed(launch: Launch, folder: ServerFolder) -> None:
    patience = replace(HASTE, grace_s=0.3)
    async with watched(scripted(launch, Script(deaf=True)), folder, patience) as one:
        state = await one.until(ready)
        assert state.server is not None
        assert len(process.members(state.server)) == 4
    assert process.members(state.server) == []


async def test_stop_in_mid_start(launch: Launch, folder: ServerFolder) -> None:
    async with watched(launch, folder) as one:
        await one.until(lambda state: bool(state.stages))
        one.supervisor.ask_to_stop()
        await one.running
    assert folder.read().status == "stopped"


async def test_a_taken_port_is_named_at_once(launch: Launch, folder: ServerFolder) -> None:
    with socket.create_server(("127.0.0.1", launch.port)):
        async with watched(launch, folder) as one:
            assert f"Port {launch.port}" in await one.failed()
    assert one.states == []


async def test_a_port_that_is_taken_while_the_server_is_away_is_named(
    launch: Launch, folder: ServerFolder, tmp_path: Path
) -> None:
    crash, starts = tmp_path / "crash", tmp_path / "starts"
    script = Script(crash_file=str(crash), starts_file=str(starts))
    async with watched(scripted(launch, script), folder, replace(HASTE, pauses_s=(1.0,))) as one:
        await one.until(ready)
        crash.touch()
        await one.until(lambda state: state.status == "pausing")
        with socket.create_server(("127.0.0.1", launch.port)):
            said = await one.failed()
    assert said.startswith(f"Port {launch.port}")
    assert len(starts.read_text().splitlines()) == 1
    assert (folder.read().status, folder.read().message) == ("failed", said)


async def test_an_environment_without_vllm(launch: Launch, folder: ServerFolder) -> None:
    async with watched(replace(launch, argv=("/nowhere/bin/vllm",)), folder) as one:
        assert "/nowhere/bin/vllm cannot be started" in await one.failed()


async def test_one_server_per_data_folder_and_found_again(launch: Launch, folder: ServerFolder) -> None:
    async with watched(launch, folder) as one:
        await one.until(ready)
        again = ServerFolder(folder.path.parent).read()
        assert again == one.supervisor.state
        assert again.endpoint == launch.endpoint
        async with watched(launch, folder) as other:
            said = await other.failed()
        assert "already ready" in said
        assert launch.endpoint in said


async def test_the_key_is_asked_for_and_given(launch: Launch, folder: ServerFolder) -> None:
    keyed = replace(launch, api_key="secret", env={**launch.env, "VLLM_API_KEY": "secret"})
    async with watched(keyed, folder) as one:
        await one.until(ready)
        assert await asked(launch, "/v1/models") == 401
    assert "secret" not in folder.read().model_dump_json()


def abandoned(launch: Launch, folder: ServerFolder) -> ServerState:
    """The state of a server whose supervisor was killed."""
    code = (
        "import asyncio, json, sys; from pathlib import Path;"
        "from omni_app.server.state import ServerFolder; from omni_app.server.supervisor import Launch, Supervisor;"
        "launch = Launch(**json.loads(sys.argv[1]));"
        "asyncio.run(Supervisor(launch, ServerFolder(Path(sys.argv[2]))).run())"
    )
    told = json.dumps({**asdict(launch), "env": dict(launch.env)})
    supervisor = subprocess.Popen([sys.executable, "-c", code, told, str(folder.path.parent)])
    deadline = time.monotonic() + 60
    while not ready(folder.read()):
        assert supervisor.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    supervisor.kill()
    supervisor.wait()
    return folder.read()


async def test_a_server_without_its_supervisor_is_noticed_and_stopped(launch: Launch, folder: ServerFolder) -> None:
    state = abandoned(launch, folder)
    assert state.status == "ready"
    assert "nobody watches it" in state.message
    assert state.server is not None
    await stop(folder, grace_s=10)
    assert process.members(state.server) == []
    assert folder.read().status == "stopped"


async def test_a_new_start_ends_what_an_old_one_left(launch: Launch, folder: ServerFolder) -> None:
    state = abandoned(launch, folder)
    assert state.server is not None
    async with watched(launch, folder) as one:
        await one.until(ready)
        assert process.members(state.server) == []


async def test_room_is_made_before_a_plan_unless_a_supervisor_works(launch: Launch, folder: ServerFolder) -> None:
    state = abandoned(launch, folder)
    assert state.server is not None
    await make_room(folder)
    assert process.members(state.server) == []
    assert folder.read().status == "failed"
    async with watched(launch, folder) as one:
        await one.until(ready)
        with pytest.raises(EngineUnavailable, match="already ready"):
            await make_room(folder)
        assert one.supervisor.state.server is not None
        assert process.members(one.supervisor.state.server)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"),
        ("fe80::2", "[fe80::2]"), ("gpu", "gpu"),
    ],
)  # fmt: skip
def test_where_the_server_is_reached(launch: Launch, host: str, address: str) -> None:
    assert replace(launch, host=host, port=8091).endpoint == f"http://{address}:8091"


@pytest.mark.parametrize("name", ["state.json", "deploy.yaml", "server.log.1"])
async def test_a_state_that_cannot_be_written_leaves_no_server(
    launch: Launch, folder: ServerFolder, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    started: list[ProcessId] = []
    start = process.start

    def remembered(*given: Any) -> Any:
        child, server = start(*given)
        started.append(server)
        return child, server

    monkeypatch.setattr(process, "start", remembered)
    (folder.path / name / "in the way").mkdir(parents=True)
    folder.log.touch()
    async with watched(replace(launch, deploy_yaml="stages: []\n"), folder) as one:
        assert f"{folder.path} cannot be written" in await one.failed()
    assert len(started) == (name == "state.json")
    assert [process.members(server) for server in started] == [[]] * len(started)


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    running = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield running
    running.kill()
    running.wait()


async def test_a_process_that_is_not_ours_is_left_alone(
    folder: ServerFolder, stranger: subprocess.Popen[bytes]
) -> None:
    real = process.identify(stranger.pid)
    taken = real.model_copy(update={"started_ticks": real.started_ticks - 1, "mark": "other"})
    folder.write(ServerState(status="ready", supervisor=taken, server=taken))
    assert not process.is_running(taken)
    assert process.members(taken) == []
    await stop(folder, grace_s=1)
    assert stranger.poll() is None
    assert folder.read().status == "stopped"


async def test_a_process_of_an_earlier_boot_is_left_alone() -> None:
    mine = process.identify(os.getpid())
    assert process.is_running(mine)
    assert not process.is_running(mine.model_copy(update={"boot": "another"}))
    assert process.members(mine.model_copy(update={"boot": "another"})) == []


async def test_the_logs_tail_is_what_says_something(folder: ServerFolder) -> None:
    assert folder.tail(3) == []
    folder.fresh_log().write_bytes(b"one\n\n(APIServer pid=7) \n10%\r20%\r\n(APIServer pid=7) two\nthr\xc3")
    assert folder.tail(3) == ["20%", "(APIServer pid=7) two", "thr\ufffd"]


async def test_a_damaged_state_is_no_error(folder: ServerFolder) -> None:
    folder.write(ServerState(status="ready"))
    (folder.path / "state.json").write_text('{"status": "rea')
    assert folder.read().status == "none"
    assert "cannot be read" in folder.read().message


async def test_a_folder_that_cannot_be_written(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineUnavailable, match="data-dir"), ServerFolder(tmp_path / "file").locked():
        raise AssertionError("it was locked")
