"""Of several GPUs the one with the most free memory is taken; a script stands in for the driver's program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantize import environment, gpus

THREE = """0, GPU-aa00, 1024, NVIDIA H200
1, GPU-ab11, 81000, NVIDIA H200
2, GPU-ab22, 140000, NVIDIA H200"""
UNLIKE = THREE.replace("1024, NVIDIA H200", "1024, NVIDIA T4")
SCRIPT = "import os; from quantize import gpus; gpus.take_emptiest(); print(os.environ.get('CUDA_VISIBLE_DEVICES'))"


def taken(tmp_path: Path, driver: str, **variables: str) -> tuple[str, str]:
    """CUDA_VISIBLE_DEVICES afterwards, and what was said."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{driver}\nEND\n")
    program.chmod(0o755)
    env = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
    env |= {"PATH": f"{tmp_path}:{env['PATH']}", **variables}
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=environment.ROOT, env=env, capture_output=True, text=True, check=True
    )
    return ended.stdout.strip(), ended.stderr.strip()


def test_the_emptiest_is_taken_and_named(tmp_path: Path) -> None:
    said = "GPU 2 (NVIDIA H200) is used: of 3 it has the most free memory, 146.8 GB."
    assert taken(tmp_path, THREE) == ("GPU-ab22", said)


@pytest.mark.parametrize(
    ("driver", "variables", "expected"),
    [
        (THREE, {"CUDA_VISIBLE_DEVICES": "0,1"}, "GPU-ab11"),
        (THREE, {"CUDA_VISIBLE_DEVICES": "GPU-ab11, GPU-aa"}, "GPU-ab11"),
        (UNLIKE, {"CUDA_VISIBLE_DEVICES": "0,1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, "GPU-ab11"),
        (UNLIKE, {"CUDA_VISIBLE_DEVICES": "0,1"}, "0,1"),
        (THREE, {"CUDA_VISIBLE_DEVICES": "0"}, "0"),
        (THREE, {"CUDA_VISIBLE_DEVICES": ""}, ""),
        (THREE, {"CUDA_VISIBLE_DEVICES": "MIG-aa00,1"}, "MIG-aa00,1"),
        (THREE.splitlines()[0], {}, "None"),
        (THREE.replace("140000", "[N/A]"), {}, "None"),
        ("No devices were found", {}, "None"),
    ],
)
def test_only_those_that_the_user_shows_and_the_driver_knows(
    tmp_path: Path, driver: str, variables: dict[str, str], expected: str
) -> None:
    assert taken(tmp_path, driver, **variables)[0] == expected


def test_no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus._installed() == []
