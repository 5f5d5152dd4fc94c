"""The doctor before machines, folders and settings of many kinds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from omni_app import doctor, pins
from omni_app.doctor import Finding
from omni_app.engines.builtin import assets
from omni_app.hardware import GIB, Fact, Machine
from omni_app.server import process
from omni_app.server.state import ServerFolder, ServerState
from omni_app.settings import Settings
from tests.server import model_folder
from tests.server.machines import MACHINES, gpu, machine

Examine = Callable[..., dict[str, Finding]]


@pytest.fixture
def examine(tmp_path: Path) -> Examine:
    """Findings by name, for settings that touch nothing of this machine."""

    def run(at: Machine = MACHINES["h100"], **changes: Any) -> dict[str, Finding]:
        given = {
            "data_dir": tmp_path / "data", "cache_dir": tmp_path / "cache", "serve_venv": tmp_path / "venv",
            "port": 0, "endpoint": "", "engine": "auto", "host": "127.0.0.1",
        }  # fmt: skip
        return {one.name: one for one in doctor.examine(Settings(**(given | changes)), at)}

    return run


def install(venv: Path, **versions: str) -> None:
    """An environment with these packages, as their metadata says."""
    for name, version in versions.items():
        folder = venv / "lib" / "python3.12" / "site-packages" / f"{name}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def serve_before(tmp_path: Path, model: Path, **changes: Any) -> None:
    ServerFolder(tmp_path / "data").write(ServerState(model=str(model), **changes))


def test_a_machine_without_a_gpu_is_fit_for_the_builtin_engine(examine: Examine) -> None:
    found = examine(machine())
    assert found["GPU"].level == "warn"
    assert "the builtin engine none" in found["GPU"].reason
    assert found["engine"].value == "builtin"
    assert "driver" not in found
    assert doctor.status(found.values()) == 0


def test_a_hopper_gpu_and_its_kernel(examine: Examine) -> None:
    found = examine()
    assert found["GPU 0"].value == "NVIDIA H100 80GB HBM3, 78.7 of 79.2 GiB free"
    assert found["compute capability"].value == "9.0"
    assert found["NVFP4 kernel"].value == "Marlin, weight-only"
    assert "older than Blackwell" in found["NVFP4 kernel"].reason
    assert found["driver"].level == "ok"


def test_blackwell_multiplies_fp4(examine: Examine) -> None:
    assert examine(MACHINES["spark"])["NVFP4 kernel"].value == "native FP4 (W4A4)"


def test_the_kernel_of_the_last_start_is_told(examine: Examine, tmp_path: Path) -> None:
    serve_before(tmp_path, tmp_path / "model", kernels=("MarlinNvFp4LinearKernel",))
    assert "the last start used MarlinNvFp4LinearKernel" in examine()["NVFP4 kernel"].reason


@pytest.mark.parametrize("served", [False, True])
def test_faults_of_the_server_side_are_failures_only_where_it_is_set_up(
    examine: Examine, tmp_path: Path, served: bool
) -> None:
    if served:
        install(tmp_path / "venv", vllm="0.30.0")
    old = replace(machine(gpu("Tesla T4", 15, (7, 5))), driver=Fact("535.104.05", "nvidia-smi"))
    found = examine(old)
    for name in ("compute capability", "driver"):
        assert found[name].level == ("fail" if served else "warn")
    assert "580 or newer" in found["driver"].reason
    assert doctor.status(found.values()) == int(served)


def test_what_is_not_known_of_a_gpu(examine: Examine) -> None:
    odd = replace(machine(gpu("Mystery", 24, None)), driver=Fact("", "nvidia-smi is not installed"))
    found = examine(odd)
    assert (found["compute capability"].value, found["driver"].value) == ("unknown", "unknown")
    assert "NVFP4 kernel" not in found


def test_little_memory_and_disk(examine: Examine, tmp_path: Path) -> None:
    small = replace(machine(ram_gib=0.5), disk_free={tmp_path / "cache": Fact(GIB // 2, "the disk of /")})
    found = examine(small)
    assert found["memory"].level == "warn"
    assert found["disk for model files"].level == "warn"
    assert found["disk for model files"].value == "0.5 GiB free"


def test_this_environment_is_as_pinned(examine: Examine) -> None:
    """`make test` installs from the very list that is checked."""
    assert examine()["packages of the app"].value == "as pinned"


def test_the_server_s_environment_against_its_pins(examine: Examine, tmp_path: Path) -> None:
    assert "`make serve` builds it" in examine()["packages of the server"].reason
    install(tmp_path / "venv", vllm="0.31.0", vllm_omni="0.30.0")
    found = examine()["packages of the server"]
    assert found.level == "fail"
    assert "accelerate is missing" in found.value


def test_differences_name_versions_missing_packages_and_nothing_else(tmp_path: Path) -> None:
    install(tmp_path, vllm="0.31.0", Vllm_Omni="0.30.0", torch="2.13.0+cu130")
    wanted = [
        "vllm==0.30.0", "vllm-omni==0.30.0", "# a comment", "--index-url https://example.org", "torch==2.13.0",
        "numpy==1.0 ; sys_platform == 'win32'", "transformers==5.14.1  # why", "",
    ]  # fmt: skip
    told = pins.differences(wanted, pins.site_packages(tmp_path))
    assert told == ["vllm is 0.31.0, not 0.30.0", "transformers is missing"]


def test_the_engine_and_why(examine: Examine) -> None:
    assert "OMNI_ENDPOINT" in examine()["engine"].reason
    assert examine(engine="no-such")["engine"].level == "fail"


def test_an_endpoint_that_nobody_answers_at(examine: Examine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    found = examine(endpoint=f"http://127.0.0.1:{port}/v1")
    assert found["engine"].value == "endpoint"
    assert found["endpoint"].level == "fail"
    assert "cannot be reached" in found["endpoint"].reason
    assert examine(endpoint="http://[broken")["endpoint"].level == "fail"


@pytest.mark.parametrize(
    ("answers", "level"),
    [
        ({"/health": "200 OK"}, "ok"),
        ({"/health": "503 Service Unavailable"}, "warn"),
        ({"/health": "404 Not Found", "/v1/models": "200 OK"}, "ok"),
        ({"/health": "404 Not Found", "/v1/models": "401 Unauthorized"}, "fail"),
    ],
)
def test_an_endpoint_that_answers(examine: Examine, answers: dict[str, str], level: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for path, answer in answers.items():
                connection, _ = server.accept()
                with connection:
                    assert connection.recv(4096).startswith(f"GET {path} ".encode())
                    connection.sendall(f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

        thread = threading.Thread(target=serve)
        thread.start()
        found = examine(endpoint=f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert found["endpoint"].level == level


def test_the_builtin_engine_s_models(examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = examine()["models of the builtin engine"]
    assert found.level == "warn"
    assert found.value == "5 of 5 files missing"
    folder = tmp_path / "cache" / "models"
    folder.mkdir(parents=True)
    for asset in assets.ASSETS:
        with (folder / asset.name).open("wb") as file:
            file.truncate(asset.size)
    assert examine()["models of the builtin engine"].value == "present"
    monkeypatch.setattr(assets, "MOONSHINE", assets.Packaged("no-such-package==1", "nowhere", ()))
    assert examine()["models of the builtin engine"].level == "fail"


def test_the_model_that_was_served_last(examine: Examine, tmp_path: Path) -> None:
    assert examine()["model folder"].value == "none yet"
    serve_before(tmp_path, model_folder.make(tmp_path / "model", "nvfp4"))
    found = examine()
    assert found["model folder"].reason == "whole: 25.7 GiB, NVFP4 thinker"
    assert found["model in memory"].value == "fits 8 full conversations"
    refused = examine(MACHINES["32"])["model folder"]
    assert refused.level == "warn"
    assert "does not fit" in refused.reason


def test_the_model_that_shall_be_served_goes_before_the_last_one(examine: Examine, tmp_path: Path) -> None:
    serve_before(tmp_path, model_folder.make(tmp_path / "last", "nvfp4"))
    wanted = model_folder.make(tmp_path / "wanted", "bf16")
    found = examine(serve_model=str(wanted))
    assert found["model folder"].value == str(wanted)
    assert "BF16 thinker" in found["model folder"].reason
    assert "no user" in examine(serve_model="~nobody-here/model")["model folder"].reason


def test_a_model_that_shall_be_served_while_another_one_is(examine: Examine, tmp_path: Path) -> None:
    wanted = model_folder.make(tmp_path / "wanted", "nvfp4")
    serve_before(tmp_path, Path("/models/other"), status="ready", supervisor=process.identify(os.getpid()))
    assert "/models/other is ready; stop it first" in examine(serve_model=str(wanted))["model in memory"].reason


@pytest.mark.parametrize(
    ("arguments", "unbuffered"), [(["doctor", "--json"], "1"), (["doctor", "--json"], ""), (["doctor", "--help"], "")]
)
def test_a_reader_who_has_had_enough_gets_no_complaint(arguments: list[str], unbuffered: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "omni_app", *arguments, f"--data-dir={tmp_path}"]
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as asked:
        assert asked.stdout is not None
        asked.stdout.close()
        assert asked.stderr is not None
        assert asked.stderr.read() == ""
    assert asked.returncode == 128 + signal.SIGPIPE


def test_a_model_folder_that_was_damaged_since(examine: Examine, tmp_path: Path) -> None:
    folder = model_folder.make(tmp_path / "model", "bf16")
    serve_before(tmp_path, folder)
    install(tmp_path / "venv", vllm="0.30.0")
    (folder / "tokenizer.json").unlink()
    (folder / "chat_template.json").unlink()
    found = examine()["model folder"]
    assert found.level == "fail"
    assert "tokenizer is missing" in found.reason
    assert "\n" not in found.reason
    shutil.rmtree(folder)
    assert "is not a folder" in examine()["model folder"].reason


def test_ports(examine: Examine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = examine(port=port, serve_port=port)
        assert found["port of the app"].level == "warn"
        assert "--port" in found["port of the app"].reason
        assert "--serve-port" in found["port of the server"].reason
    assert examine(serve_port=port)["port of the server"].reason == "free"
    assert examine(port=0)["port of the app"].value == "any"
    assert examine(host="no.such.host.invalid", port=80)["port of the app"].level == "warn"


@pytest.mark.parametrize(
    ("changes", "level", "reason"),
    [
        ({"host": "127.0.0.1"}, "ok", "localhost"),
        ({"host": "0.0.0.0"}, "warn", "only over HTTPS"),
        ({"host": "0.0.0.0", "share": True}, "ok", "HTTPS"),
    ],
)
def test_the_microphone_needs_https(examine: Examine, changes: dict[str, Any], level: str, reason: str) -> None:
    found = examine(**changes)["microphone"]
    assert found.level == level
    assert reason in found.reason


def test_run_prints_and_says_by_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omni_app.hardware.detect", lambda folders: MACHINES["h100"])
    settings = Settings(data_dir=tmp_path, cache_dir=tmp_path, port=0, serve_venv=tmp_path / "none")
    assert doctor.run(settings, as_json=False) == 0
    text = capsys.readouterr().out
    assert "ok    NVFP4 kernel: Marlin, weight-only (sm_90" in text
    broken = settings.model_copy(update={"engine": "no-such"})
    assert doctor.run(broken, as_json=True) == 1
    findings = json.loads(capsys.readouterr().out)
    assert {"name", "value", "reason", "level"} == set(findings[0])
    assert [one["name"] for one in findings if one["level"] == "fail"] == ["engine"]
