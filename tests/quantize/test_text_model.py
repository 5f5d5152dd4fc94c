"""A generic causal language model takes the same road, and what it lost is measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.quantize.conftest import Driver

pytestmark = [pytest.mark.quantize, pytest.mark.timeout(600)]
RECIPES: dict[str, dict[str, Any]] = {
    "FP8_DYNAMIC": {"scheme": "FP8_DYNAMIC"},
    "FP8_BLOCK": {"scheme": "FP8_BLOCK", "parts": ("experts",)},
    "NVFP4A16": {"scheme": "NVFP4A16"},
    "NVFP4": {"scheme": "NVFP4", "samples": 4},
    "W4A16-gptq": {"scheme": "W4A16", "group": 64, "algorithm": "gptq", "samples": 4},
    "W4A16-awq": {"scheme": "W4A16", "group": 64, "algorithm": "awq", "samples": 4},
    "NVFP4-awq": {"scheme": "NVFP4", "algorithm": "awq", "samples": 4},
}


@pytest.fixture(scope="module")
def folder(drive: Driver, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has the model; gets the results."""
    made = tmp_path_factory.mktemp("text")
    drive("tiny_text.py", made / "model")
    return made


@pytest.fixture(scope="module")
def results(drive: Driver, folder: Path) -> Any:
    return drive("run_recipes.py", folder / "model", folder, json.dumps(RECIPES))


@pytest.mark.parametrize("name", RECIPES)
def test_passes_its_own_verification(results: Any, name: str) -> None:
    assert "error" not in results[name]
    assert results[name]["report"]["passed"]


def test_what_is_published_holds_no_paths_of_this_machine(results: Any, folder: Path) -> None:
    published = Path(results["FP8_DYNAMIC"]["folder"])
    texts = {file.name: file.read_text() for file in published.iterdir() if file.suffix in (".json", ".md", ".yaml")}
    assert json.loads(texts["verification.json"])["folder"] == "FP8_DYNAMIC"
    assert [name for name, text in texts.items() if str(folder) in text] == []


@pytest.mark.parametrize("name", RECIPES)
def test_loss_is_measured(results: Any, name: str) -> None:
    quality = results[name]["report"]["quality"]
    assert quality["kl"] > 0
    assert 0.5 < quality["agreement"] <= 1
    assert quality["perplexity_ratio"] == pytest.approx(1, abs=0.2)


def test_coarser_schemes_lose_more(results: Any) -> None:
    losses = [results[name]["report"]["quality"]["kl"] for name in ("FP8_DYNAMIC", "NVFP4A16", "NVFP4")]
    assert losses == sorted(losses)


def test_a_model_in_another_type_keeps_it(drive: Driver, tmp_path: Path) -> None:
    drive("tiny_text.py", tmp_path / "half", "float16")
    gptq = {"scheme": "NVFP4A16", "algorithm": "gptq", "samples": 2}
    found = drive("run_recipes.py", tmp_path / "half", tmp_path, json.dumps({"gptq": gptq}))["gptq"]
    assert "error" not in found
    assert found["dtypes"]["model.embed_tokens.weight"] == "F16"


def test_a_result_is_not_lost_where_the_model_cannot_be_run(drive: Driver, folder: Path) -> None:
    source = Path(shutil.copytree(folder / "model", folder / "speechless"))
    for file in source.glob("tokenizer*"):
        file.unlink()
    found = drive("run_recipes.py", source, folder, json.dumps({"rtn": {"scheme": "NVFP4A16"}}))["rtn"]
    assert found["report"]["passed"]
    assert "could not be run here" in found["report"]["not_measured"]["quality"]
    assert "were not measured" in (folder / "rtn" / "README.md").read_text()


def test_transformers_reads_the_same_model(results: Any, drive: Driver, folder: Path) -> None:
    found = drive("compare_reload.py", folder / "model", *(results[name]["folder"] for name in RECIPES))
    assert found == {name: {"error": 0, "tokens": 4} for name in RECIPES}
