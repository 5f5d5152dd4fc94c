"""The README's commands, run as they stand there in a clean copy of the repository."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
NOT_OURS = shutil.ignore_patterns(".venv*", ".git", ".*_cache", "__pycache__", "data", "out", ".gpu")
PORT = 7860

pytestmark = [pytest.mark.models, pytest.mark.timeout(900)]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean") / "omni"
    shutil.copytree(ROOT, folder, ignore=NOT_OURS)
    return folder


@pytest.fixture(scope="module")
def port(copy: Path) -> Iterator[int]:
    """The port of the app that `make run` started in the copy, environment and all."""
    assert "make run " in blocks("bash")[0]
    port = free_port()
    running = subprocess.Popen(
        ["make", f"PYTHON={sys.executable}", "run", f"ARGS=--port {port} --data-dir {copy / 'data'}"],
        cwd=copy, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    assert running.stdout is not None
    told = []
    for line in running.stdout:
        told.append(line)
        if f"Omni is at http://127.0.0.1:{port}" in line:
            break
    else:
        raise AssertionError("".join(told))
    threading.Thread(target=running.stdout.read, daemon=True).start()
    yield port
    os.killpg(running.pid, signal.SIGTERM)
    running.wait(30)


def run(command: str, copy: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], cwd=copy, capture_output=True, text=True, timeout=600)


def test_curl_gets_an_answer(copy: Path, port: int) -> None:
    (command,) = [block for block in blocks("bash") if block.startswith("curl")]
    done = run(command.replace(str(PORT), str(port)), copy)
    assert "Paris" in done.stdout, done.stderr


def test_openai_client_gets_text_and_speech(port: int, tmp_path: Path) -> None:
    (program,) = blocks("python")
    ours = program.replace(str(PORT), str(port)) + "\nprint()\nprint(len(pcm))\n"
    done = subprocess.run([sys.executable, "-c", ours], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    *text, size = done.stdout.splitlines()
    assert "Paris" in "\n".join(text), done.stderr
    assert int(size) > 24_000


def test_tools_of_the_command_line_say_what_they_do(copy: Path, port: int) -> None:
    named = re.findall(r"`(\.venv/bin/python -m omni_app[^`]*)`", README)
    assert {"run --help", "doctor", "bench"} <= {command.partition("omni_app ")[2] for command in named}
    for command in named:
        quick = f"{command} --users 1 --rounds 1 --tokens 8 --port {port}" if command.endswith("bench") else command
        done = run(quick, copy)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.strip()


def test_make_targets_of_the_readme_exist(copy: Path) -> None:
    targets = set(
        re.findall(r"make ([a-z][a-z-]+)", "\n".join(blocks("bash")) + "".join(re.findall("`[^`]+`", README)))
    )
    assert {"run", "test", "serve"} <= targets
    for target in targets:
        assert run(f"make -n {target}", copy).returncode == 0, target


def test_a_model_that_cannot_be_served_is_told_of_before_gigabytes_are_installed(copy: Path) -> None:
    for more in ("", " ARGS=--only-plan"):
        done = run(f"make serve MODEL=/nowhere{more}", copy)
        assert done.returncode != 0
        assert "/nowhere is not a folder" in done.stdout + done.stderr
        assert "Installing" not in done.stdout
    assert not (copy / ".venv-serve").exists()
