"""Every data-free scheme on a tiny Qwen3-Omni with all parts, by the real worker; and it speaks afterwards."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import pytest

from quantize import estimate, folder, job, plan
from quantize.checkpoint import read_source
from quantize.schemes import Recipe
from tests.quantize.conftest import Driver
from tests.quantize.job_steps import Command, started, until
from tests.quantize.test_plan import EVERY_PART

pytestmark = [pytest.mark.quantize, pytest.mark.timeout(600)]
RECIPES: dict[str, dict[str, Any]] = {
    "NVFP4A16": {"scheme": "NVFP4A16"},
    "NVFP4A16-both": {"scheme": "NVFP4A16", "parts": EVERY_PART},
    "NVFP4A16-mse": {"scheme": "NVFP4A16", "algorithm": "mse"},
    "NVFP4A16-experts": {"scheme": "NVFP4A16", "parts": ("thinker_experts",)},
    "FP8_DYNAMIC": {"scheme": "FP8_DYNAMIC"},
    "FP8_DYNAMIC-both": {"scheme": "FP8_DYNAMIC", "parts": EVERY_PART},
    "FP8_BLOCK": {"scheme": "FP8_BLOCK"},
    "W4A16": {"scheme": "W4A16", "group": 32},
    "W4A16-both": {"scheme": "W4A16", "group": 32, "parts": EVERY_PART},
}

MEMORY = "../../benchmarks/quantize_memory.py"


@pytest.fixture(scope="module")
def results(drive: Driver, tiny_omni: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("data-free")
    return drive("run_recipes.py", tiny_omni, out, json.dumps(RECIPES))


@pytest.mark.parametrize("name", RECIPES)
def test_passes_its_own_verification(results: Any, name: str) -> None:
    assert "error" not in results[name]
    assert results[name]["report"]["passed"]
    assert len(results[name]["report"]["checks"]) == 12


@pytest.mark.parametrize("name", RECIPES)
def test_size_is_the_estimated_one(results: Any, tiny_omni: Path, name: str) -> None:
    made = plan.make(read_source(tiny_omni), Recipe(**RECIPES[name]))
    assert estimate.estimate(made, estimate.machine(tiny_omni)).bytes_after == results[name]["size"]


@pytest.mark.parametrize("name", RECIPES)
def test_config_is_the_originals_with_one_section_more(results: Any, tiny_omni: Path, name: str) -> None:
    config = dict(results[name]["config"])
    section = config.pop("quantization_config")
    assert config == json.loads((tiny_omni / "config.json").read_text())
    assert all(rule.startswith("re:") for rule in section["ignore"])
    assert section["config_groups"]["group_0"]["targets"] == ["Linear"]


def test_tensors_are_those_the_loader_expects(results: Any) -> None:
    dtypes = results["NVFP4A16-both"]["dtypes"]
    for owner in ("thinker.model.layers.0.mlp.experts.1.up_proj", "talker.model.layers.1.mlp.shared_expert.up_proj"):
        assert dtypes[f"{owner}.weight_packed"] == "U8"
        assert dtypes[f"{owner}.weight_scale"] == "F8_E4M3"
        assert dtypes[f"{owner}.weight_global_scale"] == "F32"
        assert f"{owner}.weight" not in dtypes
    assert dtypes["thinker.model.layers.0.mlp.gate.weight"] == "BF16"
    assert results["FP8_DYNAMIC"]["dtypes"]["thinker.model.layers.0.self_attn.o_proj.weight"] == "F8_E4M3"
    assert results["W4A16"]["dtypes"]["thinker.model.layers.0.self_attn.o_proj.weight_packed"] == "I32"


def test_mse_is_nearer_to_the_original(results: Any) -> None:
    means = [results[name]["report"]["mean_error"]["thinker_experts"] for name in ("NVFP4A16-mse", "NVFP4A16")]
    assert means[0] < means[1]


def test_the_folder_is_whole(results: Any) -> None:
    names = {file.name for file in Path(results["NVFP4A16"]["folder"]).iterdir()}
    assert names >= {
        "config.json", "recipe.yaml", "README.md", "verification.json", "tokenizer.json", "chat_template.jinja",
        "generation_config.json", "preprocessor_config.json", "model.safetensors.index.json",
    }  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_reloads_and_is_near_the_original(results: Any, name: str) -> None:
    quality = results[name]["report"]["quality"]
    assert 0 < quality["kl"] < 0.05
    assert 0.6 < quality["agreement"] < 1
    assert quality["perplexity_ratio"] == pytest.approx(1, abs=0.05)
    assert quality["tokens"] == 2048


@pytest.mark.parametrize("name", RECIPES)
def test_speaks_after_reloading(results: Any, name: str) -> None:
    speech = results[name]["report"]["speech"]
    assert speech["said_after"]
    assert "weights are random" in results[name]["report"]["not_measured"]["speech"]
    for wav in (speech["wav_before"], speech["wav_after"]):
        with wave.open(str(Path(results[name]["job"]) / wav)) as sound:
            assert sound.getframerate() == 24_000
            assert sound.getnframes() > 1000
            assert any(sound.readframes(sound.getnframes()))


def test_errors_are_told_by_depth(results: Any) -> None:
    found = results["NVFP4A16-both"]["report"]["depth_error"]
    assert {(row["part"], row["depth"]) for row in found} == {(part, depth) for part in EVERY_PART for depth in (0, 1)}
    assert all(0 < row["mean"] <= row["worst"] < 0.2 for row in found)


@pytest.fixture(scope="module")
def blocks(drive: Driver, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """FP8_BLOCK of a model wide enough for blocks of 128 x 128 in its experts."""
    folder = tmp_path_factory.mktemp("blocks")
    drive("tiny_omni.py", folder / "wide", 256)
    recipes = {"both": {"scheme": "FP8_BLOCK", "parts": EVERY_PART}}
    return drive("run_recipes.py", folder / "wide", folder, json.dumps(recipes))["both"]


def test_blocks_reload_and_are_near_the_original(blocks: Any) -> None:
    assert blocks["report"]["passed"]
    assert blocks["dtypes"]["thinker.model.layers.0.mlp.experts.1.up_proj.weight"] == "F8_E4M3"
    assert 0 < blocks["report"]["quality"]["kl"] < 0.01
    assert blocks["report"]["speech"]["said_after"]


@pytest.mark.parametrize(("name", "scheme"), [("NVFP4A16-both", "NVFP4A16"), ("FP8_DYNAMIC", "FP8_DYNAMIC")])
def test_equals_llm_compressor_bit_by_bit(
    results: Any, drive: Driver, tiny_omni: Path, tmp_path: Path, name: str, scheme: str
) -> None:
    found = drive("compare_model_free.py", tiny_omni, tmp_path / "theirs", scheme, results[name]["folder"])
    assert found["identical"] == found["theirs"] == found["ours"]


@pytest.fixture(scope="module")
def one_file(drive: Driver, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one file of 226 MB. Read it, never change it."""
    folder = tmp_path_factory.mktemp("large") / "1"
    drive(MEMORY, "make", folder, 1)
    return folder


def test_memory_is_bounded_by_one_file_however_large_the_model(drive: Driver, one_file: Path, tmp_path: Path) -> None:
    two_files = tmp_path / "2"
    drive(MEMORY, "make", two_files, 2)
    one, two = (drive(MEMORY, "peak", folder, "FP8_DYNAMIC") for folder in (one_file, two_files))
    assert two["over_start"] < 3 * two["shard"]
    assert two["over_start"] < one["over_start"] + one["shard"] / 2


@pytest.mark.parametrize("supervisor_dies", [False, True])
def test_real_worker_ends_at_once_and_leaves_nothing(
    one_file: Path, tmp_path: Path, command: Command, supervisor_dies: bool
) -> None:
    recipe = Recipe("NVFP4A16", "mse")
    one = job.create(tmp_path / "jobs", job.Request(str(one_file), str(tmp_path / "out"), recipe))
    process = started(command("run", "--job", one.folder))
    until(lambda: one.progress is not None and one.progress.stage == "quantize", 120)
    if supervisor_dies:
        process.kill()
    else:
        job.cancel(one)
        assert one.state.status is job.Status.CANCELLED
    process.wait(60)
    until(lambda: not folder.partial(tmp_path / "out").exists())
    assert not (tmp_path / "out").exists()
    if supervisor_dies:
        assert "quantize" in one.state.message
        assert one.state.status is job.Status.INTERRUPTED
