"""The worker's own interpreter: llm-compressor with its transformers, apart from everything else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

from quantize.errors import QuantizeError
from quantize.progress import Tell, silent

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
_VARIABLE, _PLACE = "OMNI_QUANTIZE_PYTHON", "OMNI_QUANTIZE_VENV"
_SHOWN = 3
_VERSIONS = """
import json
from importlib.metadata import distributions
print(json.dumps({one.name: one.version for one in reversed(list(distributions()))}))
"""


def python() -> Path:
    """Where the worker's interpreter is or will be: $OMNI_QUANTIZE_PYTHON, this one if it can, or in `_venv`."""
    if named := os.environ.get(_VARIABLE):
        return Path(named)
    if _here():
        return Path(sys.executable)
    return _venv() / "bin" / "python"


def _venv() -> Path:
    """$OMNI_QUANTIZE_VENV, for an app whose own folder cannot be written to, or else .venv-quantize in that."""
    return Path(os.environ.get(_PLACE) or ROOT / ".venv-quantize").expanduser().absolute()


def ready() -> bool:
    return there() and not outdated()


def there() -> bool:
    """Whether there is one, be it for other requirements."""
    return _own() or _built()


def _own() -> bool:
    """An interpreter that somebody else looks after, with the versions of their choice."""
    return bool(os.environ.get(_VARIABLE)) or _here()


def _built() -> bool:
    return (_venv() / "ready").exists()


def outdated() -> list[str]:
    """How the environment differs from the pinned requirements, which may have changed since it was built."""
    if _own() or not _built():
        return []
    try:
        command = [str(_venv() / "bin" / "python"), "-I", "-c", _VERSIONS]
        told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError):
        return ["its Python does not start"]
    found = {_normal(name): version.partition("+")[0] for name, version in told.items()}  # torch says 2.13.0+cpu
    return [
        f"{name} is {found.get(_normal(name), 'missing')}, not {pin}"
        for name, _, pin in (line.partition("==") for line in REQUIREMENTS.read_text().splitlines())
        if found.get(_normal(name)) != pin
    ]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _here() -> bool:
    try:
        metadata.version("llmcompressor")
    except metadata.PackageNotFoundError:
        return False
    return True


def ensure(log: BinaryIO, tell: Tell = silent) -> Path:
    """The interpreter, built or brought up to date first if it must be: about 2 GB, a few minutes. Raises QuantizeError
    if that fails."""
    if ready():
        return _usable(python())
    venv = _venv()
    (venv / "ready").unlink(missing_ok=True)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    steps = (
        [sys.executable, "-m", "venv", str(venv)],
        [*pip, *_torch()],
        [*pip, "-r", str(REQUIREMENTS)],
    )
    names = ("an interpreter of its own", "torch", "llm-compressor and what it needs")
    for number, command in enumerate(steps):
        tell("environment", number, len(steps), names[number])
        if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False).returncode:
            raise QuantizeError(
                "The quantizer's environment could not be built (the log says why); "
                "check the network and the disk, then start the job again."
            )
    (venv / "ready").touch()
    tell("environment", len(steps), len(steps), "")
    return python()


def built() -> Path:
    """The interpreter, for a command that should not take minutes first. Raises QuantizeError where it is not built, or
    for other requirements."""
    if not there():
        raise QuantizeError(
            "The quantizer's own environment is not built yet; `make quantize-env` does so (2 GB, some minutes)."
        )
    if differs := outdated():
        raise QuantizeError(
            f"The quantizer's environment was built for other requirements ({in_words(differs)}); `make quantize-env` "
            "brings it up to date, and so does the next job."
        )
    return _usable(python())


def in_words(differs: Sequence[str]) -> str:
    more = f" and {len(differs) - _SHOWN} more" if len(differs) > _SHOWN else ""
    return "; ".join(differs[:_SHOWN]) + more


def _usable(named: Path) -> Path:
    if shutil.which(named) is None:
        where = _VARIABLE if os.environ.get(_VARIABLE) else "The quantizer's environment"
        raise QuantizeError(f"{where} has no interpreter at {named}; mend that, or build it with `make quantize-env`.")
    return named


def _torch() -> list[str]:
    """torch's own pin, installed first and by name, so that the user's package index decides on CPU or CUDA."""
    lines = REQUIREMENTS.read_text().splitlines()
    return [line for line in lines if line.startswith("torch==")]


def variables() -> dict[str, str]:
    """The environment of the worker's process: few threads' surprises, and nothing asked of a hub by accident."""
    return {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}


if __name__ == "__main__":
    sys.exit(in_words(outdated()) or None)
