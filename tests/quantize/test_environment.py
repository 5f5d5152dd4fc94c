"""The worker's environment: whether it is built, and for the requirements that are pinned now."""

from __future__ import annotations

import io
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from quantize import environment
from quantize.errors import QuantizeError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment with three packages, by their metadata alone, as they are pinned."""
    monkeypatch.delenv("OMNI_QUANTIZE_PYTHON", raising=False)
    monkeypatch.setenv("OMNI_QUANTIZE_VENV", str(tmp_path / "venv"))
    monkeypatch.setattr(environment, "REQUIREMENTS", tmp_path / "requirements.txt")
    pin(tmp_path, "torch==2.13.0", "typing_extensions==4.16.0", "llmcompressor==0.14.0.1")
    venv.create(tmp_path / "venv")
    install(tmp_path, "torch", "2.13.0+cpu")
    install(tmp_path, "typing.extensions", "4.16.0")
    install(tmp_path, "llmcompressor", "0.14.0.1")
    (tmp_path / "venv/ready").touch()
    return tmp_path


def pin(place: Path, *lines: str) -> None:
    (place / "requirements.txt").write_text("\n".join(lines) + "\n")


def install(place: Path, name: str, version: str) -> None:
    [packages] = (place / "venv/lib").glob("python*/site-packages")
    folder = packages / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_an_environment_with_the_pinned_versions_is_ready(place: Path) -> None:
    assert environment.ready()
    assert environment.built() == place / "venv/bin/python"


def test_changed_requirements_are_told_with_what_to_run(place: Path) -> None:
    pin(place, "torch==2.13.0", "typing_extensions==4.17.0", "llmcompressor==0.15.0", "gguf==0.19.0", "scipy==1.17.1")
    assert not environment.ready()
    with pytest.raises(QuantizeError) as told:
        environment.built()
    assert str(told.value) == (
        "The quantizer's environment was built for other requirements (typing_extensions is 4.16.0, not 4.17.0; "
        "llmcompressor is 0.14.0.1, not 0.15.0; gguf is missing, not 0.19.0 and 1 more); `make quantize-env` brings it "
        "up to date, and so does the next job."
    )


def test_the_next_job_follows_changed_requirements(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(place, "torch==2.13.0", "typing_extensions==4.16.0", "llmcompressor==0.15.0")
    asked = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        asked.append(command[1:4])
        return subprocess.CompletedProcess(command, 0)

    differs = environment.outdated()
    monkeypatch.setattr(environment, "outdated", lambda: differs)
    monkeypatch.setattr(subprocess, "run", run)
    environment.ensure(io.BytesIO())
    assert asked[0] == ["-m", "venv", str(place / "venv")]
    assert asked[1:] == [["-m", "pip", "install"]] * 2
    assert (place / "venv/ready").exists()


def test_an_environment_whose_python_is_gone_is_built_again(place: Path) -> None:
    (place / "venv/bin/python").unlink()
    assert not environment.ready()
    with pytest.raises(QuantizeError, match="its Python does not start"):
        environment.built()


def test_somebody_elses_interpreter_is_not_judged(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(place, "torch==3.0.0")
    monkeypatch.setenv("OMNI_QUANTIZE_PYTHON", sys.executable)
    assert environment.ready()
    assert environment.built() == Path(sys.executable)
