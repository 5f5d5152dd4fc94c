"""Uploads as the app holds them: stopped, cut off with the app, and never with this machine's login."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from omni_app.pushing import Push
from tests.quantize import scripted_hub
from tests.stand_in_worker import small_model

GONE_SECONDS = 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = small_model(tmp_path / "small")
    (made / "README.md").write_text("---\nbase_model: a/b\n---\n# A model\n")
    return made


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A hub that takes a connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield listener


def test_a_stopped_upload_ends_at_once_and_can_be_begun_again(folder: Path, silent_hub: socket.socket) -> None:
    push = Push(folder, "user/mine", private=True, token="hf_own")
    silent_hub.accept()
    push.stop()
    assert not push.alive
    assert push.error.startswith("Stopped.")
    assert push.url == ""


def test_an_upload_ends_with_the_app_even_when_that_is_killed(folder: Path, silent_hub: socket.socket) -> None:
    code = (
        "import sys, pathlib; from omni_app.pushing import Push;"
        "push = Push(pathlib.Path(sys.argv[1]), 'user/mine', True, 'hf_own'); print(push.pid, flush=True);"
        "sys.stdin.read()"
    )
    app = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert app.stdin is not None
    assert app.stdout is not None
    upload = psutil.Process(int(app.stdout.readline()))
    silent_hub.accept()
    app.kill()
    app.wait()
    app.stdin.close()
    app.stdout.close()
    psutil.wait_procs([upload], timeout=GONE_SECONDS)
    assert not upload.is_running()


def test_the_machines_own_login_is_kept_from_uploads(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "hf"
    home.mkdir()
    (home / "token").write_text("hf_of_the_machine")
    with scripted_hub.asked(home, monkeypatch) as hub:
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_server")
        monkeypatch.setenv("OMNI_HUB_TOKEN", "hf_of_the_owner")
        listed = Push(folder, "user/mine", private=True)
        listed.wait()
        assert hub.asked == []
        assert listed.upload is not None
        assert {file.name for file in listed.upload.files} == {path.name for path in folder.iterdir()}
        sent = Push(folder, "user/mine", private=True, token=scripted_hub.TOKEN)
        sent.wait()
        assert (sent.url, sent.error) == (f"{hub.address}/user/mine", "")
        assert hub.logins - {""} == {scripted_hub.TOKEN}
        assert hub.repos["user/mine"].private
    assert scripted_hub.TOKEN not in " ".join(os.environ.values())
