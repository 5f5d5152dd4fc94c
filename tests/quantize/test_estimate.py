"""The published model's figures from headers alone, and refusals that show the sum."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from quantize import checkpoint, estimate, plan
from quantize.errors import DoesNotFit
from quantize.estimate import Estimate, Machine
from quantize.schemes import Recipe
from tests.server import model_folder

BIG = Machine(disk=10**12, ram=10**12, cores=2)


def estimated(folder: Path, recipe: Recipe, here: Machine = BIG) -> Estimate:
    return estimate.estimate(plan.make(checkpoint.read_source(folder), recipe), here)


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [
        (Recipe("NVFP4"), "nvfp4"),
        (Recipe("NVFP4A16"), "nvfp4a16"),
        (Recipe("FP8_DYNAMIC"), "fp8"),
    ],
)
def test_bytes_after_are_those_of_the_real_layout(published: Path, recipe: Recipe, kind: str) -> None:
    found = estimated(published, recipe)
    real = sum(math.prod(shape) * model_folder.BYTES[dtype] for _, dtype, shape in model_folder.tensors(kind))
    assert found.bytes_after == real


def test_published_figures(published: Path) -> None:
    found = estimated(published, Recipe("NVFP4"))
    assert found.parameters == pytest.approx(35.26e9, rel=1e-3)
    assert found.bytes_now == pytest.approx(70.5e9, rel=1e-3)
    assert found.bytes_after == pytest.approx(27.5e9, rel=2e-3)
    assert sum(part.bytes_after for part in found.parts) == found.bytes_after
    assert sum(part.bytes_now for part in found.parts) == found.bytes_now


def test_data_free_run_needs_a_few_files_of_memory_and_a_calibrated_one_the_model(published: Path) -> None:
    shard = checkpoint.read_source(published).largest_shard
    assert estimated(published, Recipe("NVFP4A16")).ram_bytes < 3 * shard
    assert estimated(published, Recipe("NVFP4")).ram_bytes > 70e9


def test_refuses_with_the_sum(published: Path) -> None:
    found = estimated(published, Recipe("NVFP4"), replace(BIG, disk=20 * 10**9, ram=32 * 10**9))
    with pytest.raises(DoesNotFit, match=r"28\.1 GB of disk and 20\.0 GB are free; free 8\.1 GB") as refused:
        estimate.require(found)
    assert "32.0 GB are available; choose NVFP4A16 or FP8_DYNAMIC" in str(refused.value)


def test_fits(published: Path) -> None:
    found = estimated(published, Recipe("NVFP4A16"))
    estimate.require(found)
    assert found.seconds > 0


def test_a_gpu_is_quicker(published: Path) -> None:
    """One H100 took 146 s for this model with all files in memory; a disk takes longer than that to read them twice."""
    recipe = Recipe("NVFP4A16")
    with_gpu, without = (estimated(published, recipe, replace(BIG, gpu=gpu, cores=16)) for gpu in (True, False))
    assert with_gpu.seconds == pytest.approx(196, rel=0.01)
    assert replace(with_gpu, seconds=0.0) == replace(without, seconds=0.0)
    assert without.seconds > 2 * with_gpu.seconds


def test_machine_looks_at_the_disk_of_a_folder_yet_to_be_made(tmp_path: Path) -> None:
    found = estimate.machine(tmp_path / "not" / "there")
    assert found.disk > 0
    assert found.ram > 0


def test_cached_files_are_no_used_memory(tmp_path: Path) -> None:
    """As in a container of 64 MB that has read a model."""
    for name, text in (("max", "64000000\n"), ("current", "63000000\n"), ("stat", "anon 9\ninactive_file 50000000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert estimate._available_ram(tmp_path) == 51_000_000


def test_needs_no_torch() -> None:
    script = "import sys, quantize.__main__; sys.exit('torch' in sys.modules or 'omni_app' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
