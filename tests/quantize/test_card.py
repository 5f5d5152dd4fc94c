"""The model card, whole, as it is published; and what it says where figures are missing."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from quantize import card, checkpoint, estimate, plan
from quantize.card import Data
from quantize.estimate import Machine
from quantize.schemes import Recipe
from quantize.speech import Speech
from quantize.verify.report import Check, LayerError, Report
from tests.quantize.test_plan import EVERY_PART

GOLDEN = Path(__file__).parent / "golden" / "card.md"
MADE = {"llmcompressor": "0.14.0.1", "compressed-tensors": "0.19.0", "transformers": "5.17.0", "torch": "2.13.0"}
REPORT = Report(
    "out", "in",
    (Check("scales", True, "74,112 are finite, positive and plausible"), Check("every tensor", True, "none missing")),
    (LayerError("thinker.model.layers.0.mlp.experts.1.up_proj", "nvfp4", 0.1012),),
    {"thinker_experts": 0.0951},
    {"perplexity": 9.51, "perplexity_before": 9.32, "perplexity_ratio": 1.02, "kl": 0.031, "agreement": 0.941},
)  # fmt: skip
GIVEN = Data("the user's set questions.jsonl", {"text alone": 12, "a picture": 9, "a sound": 11}, 1)


def rendered(published: Path, recipe: Recipe, report: Report = REPORT, given: Data | None = None) -> str:
    made = plan.make(checkpoint.read_source(published), recipe)
    size = estimate.estimate(made, Machine(10**12, 10**12, 2))
    return card.render(made, size, report, given, MADE)


def test_card_is_the_golden_one(published: Path) -> None:
    pytest.importorskip("yaml")
    assert rendered(published, Recipe("NVFP4"), given=GIVEN) == GOLDEN.read_text()


def test_metadata_is_what_a_hub_reads(published: Path) -> None:
    from huggingface_hub import ModelCard

    held = ModelCard(rendered(published, Recipe("FP8_DYNAMIC"))).data.to_dict()
    assert held["base_model_relation"] == "quantized"
    assert held["tags"] == ["compressed-tensors", "llm-compressor", "fp8-dynamic", "vllm"]


def test_what_was_not_measured_is_a_limit(published: Path) -> None:
    text = rendered(published, Recipe("NVFP4A16"), replace(REPORT, quality={}))
    assert "were not measured" in text
    assert "Nobody listened" in text
    assert "Calibration data: none" in text


def test_stages_are_told_how_they_are_stored(published: Path) -> None:
    talker = rendered(published, Recipe("NVFP4A16", parts=EVERY_PART))
    assert '"1": {"moe_backend": "auto"}, "2": {"hf_overrides": {"quantization_config": null}}' in talker
    assert '\'{"1": {"hf_overrides"' in rendered(published, Recipe("FP8_DYNAMIC"))


def test_speech_that_was_heard_is_no_limit(published: Path) -> None:
    heard = Speech("Say it.", "It.", "It.", word_error_rate=0.0)
    text = rendered(published, Recipe("NVFP4A16"), replace(REPORT, speech=heard))
    assert "Nobody listened" not in text


def test_text_models_are_served_plainly(text_model: Path) -> None:
    text = rendered(text_model, Recipe("NVFP4A16"))
    assert "vllm serve ./text-NVFP4A16\n" in text
    assert "pipeline_tag: text-generation" in text
    assert "--omni" not in text


@pytest.mark.parametrize(("kind", "commands"), [("published", 2), ("text_model", 1)])
def test_the_commands_are_quoted_for_a_shell(
    kind: str, commands: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = tmp_path / "my model's $HOME; true"
    model.symlink_to(request.getfixturevalue(kind))
    found = re.findall(r"^(?:vllm|make) serve (?:.+\\\n)*.+$", rendered(model, Recipe("NVFP4A16")), re.MULTILINE)
    assert len(found) == commands
    for words in map(shlex.split, found):
        assert words[2].removeprefix("MODEL=") == "./my model's $HOME; true-NVFP4A16"
        assert words[3:4] in ([], ["--omni"])


@pytest.mark.parametrize(
    ("saved_as", "name"),
    [("them/a-model", "them/a-model"), ("/home/them/secret/checkpoint-9", "text"), ("../checkpoint-9", "text")],
)
def test_no_path_of_a_machine_is_the_name(text_model: Path, saved_as: str, name: str) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "_name_or_path": saved_as}
    (text_model / "config.json").write_text(json.dumps(config))
    assert f"base_model: {name}\n" in rendered(text_model, Recipe("NVFP4A16"))


def test_name_of_a_snapshot_in_the_hubs_cache_is_its_id(text_model: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--them--a-model" / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    text_model.rename(snapshot)
    assert "base_model: them/a-model\n" in rendered(snapshot, Recipe("NVFP4A16"))
