"""The folder that a job fills: new, its own while it grows, and never somebody else's."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from pathlib import Path
from typing import IO

import pytest

from omni_app import jobs
from quantize import environment, folder, job, supervisor
from quantize.errors import BadRequest, JobStopped
from tests.quantize.job_steps import BEGIN, Stand, made


def test_output_must_be_new_and_outside_the_source(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(BadRequest, match="exists already"):
        folder.begin(tmp_path / "source", tmp_path / "taken")
    with pytest.raises(BadRequest, match="inside the source"):
        folder.begin(tmp_path / "source", tmp_path / "source" / "out")


def test_somebodys_own_folder_is_never_taken_for_a_half_written_result(tmp_path: Path, python_as_worker: Stand) -> None:
    own = folder.partial(tmp_path / "out")
    own.mkdir()
    (own / "model.safetensors").touch()
    with pytest.raises(BadRequest, match=r"out\.partial is in the way"):
        folder.begin(own, tmp_path / "out")
    python_as_worker("exit 1")
    supervisor.run(made(tmp_path))
    assert (own / "model.safetensors").exists()


def test_a_removal_that_is_killed_can_be_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    growing = folder.begin(tmp_path / "source", tmp_path / "out")
    (growing / "more").mkdir()
    for number in range(9):
        (growing / f"{number}.safetensors").touch()
    removed, given = list[str](), os.unlink

    def unlink(path: Path, **more: int) -> None:
        removed.append(Path(path).name)
        given(path, **more)

    monkeypatch.setattr(os, "unlink", unlink)
    folder.discard(tmp_path / "out")
    assert removed[-1] == folder._GROWING
    assert len(removed) == 10
    assert not growing.exists()


def test_a_published_result_has_nothing_of_its_growing(tmp_path: Path) -> None:
    folder.begin(tmp_path / "source", tmp_path / "out")
    folder.publish(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_another_process_makes_is_not_touched(tmp_path: Path) -> None:
    out = tmp_path / "out"
    *python, code = BEGIN
    making = subprocess.Popen([*python, f"{code}; print(flush=True); input()", tmp_path / "source", out],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=environment.ROOT)  # fmt: skip
    with making:
        assert making.stdout is not None
        making.stdout.readline()
        with pytest.raises(BadRequest, match="being made by another job"):
            folder.begin(tmp_path / "source", out)
        folder.discard(out)
        assert folder.partial(out).is_dir()
        making.kill()
    folder.begin(tmp_path / "source", out)
    folder.discard(out)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def as_nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks as the kernel's NFS client gives them: by POSIX rules, so what is locked must be open for that."""
    given = fcntl.flock

    def flock(file: IO[bytes], kind: int) -> None:
        mode = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
        if mode != os.O_RDWR and mode != (os.O_RDONLY if kind & fcntl.LOCK_SH else os.O_WRONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        given(file, kind)

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("as_nfs")
def test_locks_on_a_network_disk(tmp_path: Path) -> None:
    one, out = made(tmp_path), tmp_path / "out"
    assert not one.attended
    with one.attend():
        assert one.attended
        assert jobs.Job(one.folder)._attended
    folder.begin(tmp_path / "source", out)
    mark = folder._held.pop(out)  # as if another process had begun it
    with pytest.raises(BadRequest, match="being made by another job"):
        folder.begin(tmp_path / "source", out)
    mark.close()


def test_a_result_whose_name_was_taken_meanwhile_is_kept(tmp_path: Path) -> None:
    growing = folder.begin(tmp_path / "source", tmp_path / "out")
    (growing / "model.safetensors").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/others").touch()
    with pytest.raises(JobStopped, match=r"the whole result is in .*out\.partial"):
        folder.publish(tmp_path / "out")
    folder.discard(tmp_path / "out")
    assert [path.name for path in growing.iterdir()] == ["model.safetensors"]


def test_a_link_to_nothing_and_a_name_too_long_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nothing")
    with pytest.raises(BadRequest, match="exists already"):
        folder.require_free(tmp_path / "source", tmp_path / "out")
    with pytest.raises(BadRequest, match="too long"):
        folder.require_free(tmp_path / "source", tmp_path / ("x" * 250))


def test_two_living_jobs_never_make_one_folder(tmp_path: Path) -> None:
    first = made(tmp_path)
    with pytest.raises(BadRequest, match=f"Job {first.id} already makes"):
        job.require_alone(tmp_path / "jobs", first.request)
    ended = made(tmp_path)
    job.cancel(ended)
    with pytest.raises(BadRequest, match="already makes"):
        job.start(ended)
    job.cancel(first)
    job.require_alone(tmp_path / "jobs", first.request)
