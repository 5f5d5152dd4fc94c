from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from omni_app.scratch import Scratch, scratch, sweep

_HOLD = """
from omni_app.scratch import Scratch
made = Scratch()
(made.path / "voice.wav").write_bytes(b"private")
print(made.path, flush=True)
input()
"""


@pytest.fixture(autouse=True)
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def make_old(folder: Path) -> None:
    os.utime(folder, (0, 0))


def test_a_folder_is_private_and_goes_at_the_end() -> None:
    with scratch() as folder:
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "voice.wav").touch()
    assert not folder.exists()


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_holds_is_not() -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLD], stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdout is not None
        folder = Path(holder.stdout.readline().strip())
        make_old(folder)
        sweep()
        assert (folder / "voice.wav").exists()
        holder.kill()
    sweep()
    assert not folder.exists()


def test_own_new_and_foreign_folders_stay(temp: Path) -> None:
    mine, new, other = Scratch(), temp / "omni-app-new", temp / "omnibus"
    target, link = temp / "target", temp / "omni-app-link"
    for folder in (new, other, target):
        folder.mkdir()
    link.symlink_to(target)
    make_old(mine.path)
    make_old(other)
    os.utime(link, (0, 0), follow_symlinks=False)
    sweep()
    assert all(folder.is_dir() for folder in (mine.path, new, other, target))
    mine.remove()
    assert not mine.path.exists()
