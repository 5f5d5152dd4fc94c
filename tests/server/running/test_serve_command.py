"""`python -m omni_app serve` as a user runs it, with a stand-in for vllm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from omni_app import cli, hardware
from omni_app.errors import BadRequest, EngineUnavailable
from omni_app.server import prepare, process
from omni_app.server.foreground import Narrator
from omni_app.server.log import Stage
from omni_app.server.prepare import Order
from omni_app.server.profile import Wishes
from omni_app.server.state import ServerFolder, ServerState
from omni_app.settings import Settings
from omni_app.ui.store import VISITORS
from tests.server.fake_vllm import ROOT, Script
from tests.server.machines import MACHINES


@pytest.fixture
def deploy(tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text("stages: []\n")
    return path


@contextmanager
def serving(arguments: list[str], script: Script) -> Iterator[subprocess.Popen[str]]:
    environ = {**os.environ, "FAKE_VLLM": json.dumps(asdict(script)), "OMNI_API_KEY": "secret"}
    command = subprocess.Popen(
        [sys.executable, "-m", "omni_app", "serve", *arguments], cwd=ROOT, env=environ, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    with command:
        try:
            yield command
        finally:
            command.send_signal(signal.SIGTERM)


def told(command: subprocess.Popen[str], until: str) -> list[str]:
    assert command.stdout is not None
    lines: list[str] = []
    for line in command.stdout:
        lines.append(line.rstrip())
        if until in line:
            return lines
    raise AssertionError(f"it never said {until!r}: {lines}")


@pytest.fixture
def arguments(venv: Path, free_port: int, tmp_path: Path, deploy: Path) -> list[str]:
    return [
        "/models/omni", "--serve-venv", str(venv), "--serve-port", str(free_port), "--data-dir", str(tmp_path / "data"),
        "--deploy-config", str(deploy), "--vllm-args=--enforce-eager",
    ]  # fmt: skip


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_serve_tells_its_progress_and_one_signal_ends_everything(
    arguments: list[str], folder: ServerFolder, tmp_path: Path, ending: signal.Signals
) -> None:
    starts = tmp_path / "starts"
    with serving(arguments, Script(starts_file=str(starts))) as command:
        lines = told(command, "Talk to it: OMNI_ENDPOINT=")
        state = folder.read()
        assert state.status == "ready"
        assert state.server is not None
        command.send_signal(ending)
        assert "stopped: The server was stopped." in told(command, "stopped:")[-1]
        assert command.wait(60) == 0
    assert process.members(state.server) == []
    said = "\n".join(lines)
    for expected in ("thinker: ready (19.3 GiB", "talker: ready (6.3 GiB", "Warming up: picture", "MARLIN"):
        assert expected in said
    assert "--enforce-eager" in starts.read_text()
    assert "secret" not in said + starts.read_text()


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_that_is_closed_takes_the_server_with_it(
    arguments: list[str], folder: ServerFolder, ending: signal.Signals
) -> None:
    with serving(arguments, Script()) as command:
        told(command, "Talk to it")
        server = folder.read().server
        assert command.stdout is not None
        command.stdout.close()
        command.send_signal(ending)
        command.wait(60)
    assert server is not None
    assert process.members(server) == []
    assert folder.read().status == "stopped"


def test_a_failure_is_one_sentence_and_status_1(arguments: list[str]) -> None:
    with serving(arguments, Script("vllm030_bad_batched_tokens", exit_code=1)) as command:
        output = command.communicate(timeout=60)[0]
    assert command.returncode == 1
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith("The deploy configuration was refused: a stage takes 16384 tokens")


def test_a_second_start_is_told_of_the_first_whatever_memory_that_took(
    arguments: list[str], tmp_path: Path, folder_of: Callable[[str], Path]
) -> None:
    own = arguments.index("--deploy-config")
    again = [str(folder_of("nvfp4")), *arguments[1:own], *arguments[own + 2 :]]
    with serving(arguments, Script()) as command:
        told(command, "Talk to it")
        with serving(again, Script()) as second:
            said = second.communicate(timeout=60)[0]
        assert second.returncode == 1
        assert "A server of this data folder is already ready (/models/omni" in said
        assert command.poll() is None


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (["--vllm-args", '"'], "--vllm-args cannot be read"),
        (["--vllm-args=--port 9000"], "say --serve-port instead"),
        (["--vllm-args=--enforce-eager --api_key=secret"], "set OMNI_API_KEY instead"),
        (["--deploy-config", "~nobody-here/own.yaml"], "no user"),
    ],
)
def test_arguments_that_cannot_be_read(
    arguments: list[str], changed: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", *arguments, *changed, "--only-plan"]) == 1
    assert says in capsys.readouterr().err


@pytest.mark.usefixtures("h100")
def test_preparing_without_an_environment_or_a_file(
    tmp_path: Path, venv: Path, folder_of: Callable[[str], Path]
) -> None:
    settings = Settings(serve_venv=tmp_path / "none")
    with pytest.raises(EngineUnavailable, match="make serve"):
        prepare.prepare(settings, Order(folder_of("nvfp4")))
    with pytest.raises(BadRequest, match="deploy-config"):
        prepare.prepare(Settings(serve_venv=venv), Order(tmp_path, deploy_config=tmp_path / "none.yaml"))


def test_preparing_a_model_that_does_not_fit_here(
    venv: Path, folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(EngineUnavailable, match="GPU"):
        prepare.prepare(Settings(serve_venv=venv), Order(folder_of("nvfp4")))


def test_the_servers_environment_has_its_tools_and_none_of_our_secrets(
    venv: Path, deploy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNI_AUTH", "user:password")
    settings = Settings(serve_venv=venv, api_key="secret", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    launch = prepare.prepare(settings, Order(Path("/m"), deploy_config=deploy)).launch
    assert "OMNI_AUTH" not in launch.env
    assert launch.env["PATH"].startswith(f"{venv}/bin:")
    assert launch.env["VLLM_API_KEY"] == "secret"
    assert "secret" not in " ".join(launch.argv)
    assert launch.argv[:3] == (f"{venv}/bin/vllm", "serve", "/m")
    assert "--omni" in launch.argv
    assert launch.env["TRITON_CACHE_DIR"] == str(tmp_path / "cache/triton")


@pytest.mark.parametrize(
    ("variables", "backend"),
    [
        ({}, ""),
        ({"NCCL_NVLS_ENABLE": "1"}, ""),
        ({"NCCL_NVLS_ENABLE": "0"}, "trtllm"),
        ({"TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "VLLM_FLASHINFER_ALLREDUCE_BACKEND": "mnnvl"}, "mnnvl"),
    ],
)
def test_where_multicast_is_switched_off_flashinfer_is_told_too(
    venv: Path, deploy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], backend: str
) -> None:
    for name in ("NCCL_NVLS_ENABLE", "TORCH_SYMM_MEM_DISABLE_MULTICAST", "NVSHMEM_DISABLE_NVLS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = Settings(serve_venv=venv, data_dir=tmp_path)
    launch = prepare.prepare(settings, Order(Path("/m"), deploy_config=deploy)).launch
    assert launch.env.get("VLLM_FLASHINFER_ALLREDUCE_BACKEND", "") == backend


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine is taken for one with an H100."""
    monkeypatch.setattr(hardware, "detect", lambda *_: MACHINES["h100"])


@pytest.mark.parametrize("named", ["GPU-99aa,GPU-5d1f", "1,0"])
def test_gpus_named_by_uuid_are_given_to_the_server_by_number(
    venv: Path, tmp_path: Path, folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    gpus = [replace(gpu, index=index) for gpu, index in zip(MACHINES["2x80"].gpus, "10", strict=True)]
    monkeypatch.setattr(hardware, "detect", lambda *_: replace(MACHINES["2x80"], gpus=tuple(gpus)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    settings = Settings(serve_venv=venv, data_dir=tmp_path)
    assert prepare.prepare(settings, Order(folder_of("nvfp4"))).launch.env["CUDA_VISIBLE_DEVICES"] == "1,0"


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.usefixtures("h100")
def test_a_quick_start_runs_the_servers_python_on_our_switches(
    venv: Path, tmp_path: Path, folder_of: Callable[[str], Path], fast: bool
) -> None:
    settings = Settings(serve_venv=venv, data_dir=tmp_path)
    prepared = prepare.prepare(settings, Order(folder_of("nvfp4"), Wishes(fast_start=fast)))
    argv = prepared.launch.argv
    if fast:
        assert argv[:2] == (f"{venv}/bin/python", "-P")
        assert Path(argv[2]).is_file()
        assert argv[3:5] == (
            "parallel,no-locks,warm-up-experts,share-layers,small-predictor,crowd-graphs,tokenizer-once,early-inputs,no-sampler-warm-up,no-request-tables",
            "serve",
        )
        assert "Quick start: no-sampler-warm-up (99 s less" in "\n".join(prepared.lines())
    else:
        assert argv[:2] == (f"{venv}/bin/vllm", "serve")


@pytest.mark.usefixtures("h100")
def test_a_plan_alone_needs_no_environment(
    tmp_path: Path, folder_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["serve", str(folder_of("nvfp4")), f"--data-dir={tmp_path}", f"--serve-venv={tmp_path}/none"]
    assert cli.main([*given, "--only-plan"]) == 0
    said = capsys.readouterr().out
    assert "GPU 0:" in said
    assert said.splitlines()[-1].startswith(f"Mind: vLLM is not installed in {tmp_path}/none.")
    assert cli.main(given) == 1
    assert "make serve" in capsys.readouterr().err


@pytest.mark.parametrize(("host", "allowed"), [("127.0.0.1", True), ("0.0.0.0", False)])
@pytest.mark.usefixtures("h100")
def test_only_a_server_for_this_machine_may_read_visitors_media(
    venv: Path, tmp_path: Path, folder_of: Callable[[str], Path], host: str, allowed: bool
) -> None:
    settings = Settings(serve_venv=venv, data_dir=tmp_path, serve_host=host)
    launch = prepare.prepare(settings, Order(folder_of("nvfp4"))).launch
    folder = tmp_path / VISITORS
    assert launch.local_media == (str(folder) if allowed else "")
    assert folder.is_dir() is allowed
    assert (f"--allowed-local-media-path {folder}" in " ".join(launch.argv)) is allowed


def test_the_narrator_tells_each_thing_once() -> None:
    lines: list[str] = []
    narrator = Narrator(lines.append, Path("/log"), clock=lambda: 112.0)
    start = ServerState(status="starting", message="The server starts.", began=100.0, endpoint="http://x")
    loading = start.model_copy(update={"stages": (Stage(number=0, phase="loading", detail="1 of 7"), Stage(number=1))})
    later = start.model_copy(update={"stages": (Stage(number=0, phase="loading", detail="2 of 7"), Stage(number=1))})
    ready = start.model_copy(update={"status": "ready", "message": "It was ready after 9 s."})
    for state in (start, loading, later, ready, ready):
        narrator(state)
    assert lines == [
        "[   12 s] starting: The server starts.",
        "[   12 s] thinker: loading the weights",
        "[   12 s] ready: It was ready after 9 s.",
        "Talk to it: OMNI_ENDPOINT=http://x python app.py. Its log: /log",
    ]
