"""What happens to every tensor, and an `ignore` list that holds under vllm-omni's names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from quantize import checkpoint, plan
from quantize.errors import BadRequest
from quantize.plan import module
from quantize.schemes import OMNI_PARTS, RECIPES, SCHEMES, Recipe, decide, fused_with, part_of
from quantize.verify.names import outer_name

EVERY_PART = tuple(part.name for part in OMNI_PARTS if part.choosable)


def matches(rules: list[str], name: str) -> bool:
    return any(re.match(rule.removeprefix("re:"), outer_name(module(name))) for rule in rules)


@pytest.mark.parametrize(
    ("tensor", "part"),
    [
        ("thinker.model.layers.3.self_attn.q_proj.weight", "thinker_attention"),
        ("thinker.model.layers.3.self_attn.q_norm.weight", "thinker_norms"),
        ("thinker.model.layers.3.mlp.experts.17.down_proj.weight", "thinker_experts"),
        ("thinker.model.layers.3.mlp.gate.weight", "thinker_router"),
        ("thinker.audio_tower.layers.3.self_attn.q_proj.weight", "audio_tower"),
        ("thinker.visual.merger.mlp.0.weight", "vision_tower"),
        ("thinker.lm_head.weight", "thinker_head"),
        ("talker.model.layers.1.mlp.shared_expert.up_proj.weight", "talker_shared_experts"),
        ("talker.model.layers.1.mlp.shared_expert_gate.weight", "talker_router"),
        ("talker.code_predictor.model.layers.1.self_attn.q_proj.weight", "code_predictor"),
        ("talker.codec_head.weight", "codec_head"),
        ("code2wav.decoder.0.conv.weight", "code2wav"),
    ],
)
def test_part_of_a_tensor(tensor: str, part: str) -> None:
    found = part_of(OMNI_PARTS, tensor)
    assert found is not None
    assert found.name == part


def test_foreign_tensor_belongs_to_no_part() -> None:
    assert part_of(OMNI_PARTS, "token2wav.weight") is None


def test_default_is_the_thinkers_language_model(published: Path) -> None:
    made = plan.make(checkpoint.read_source(published), Recipe("NVFP4"))
    quantized = {decision.part.name for decision in made.decisions if decision.quantized}
    assert quantized == {"thinker_attention", "thinker_experts"}
    assert len(made.quantized) == 48 * (4 + 128 * 3)
    assert not made.left


@pytest.mark.parametrize("parts", [(), EVERY_PART, ("thinker_experts",), ("talker_attention", "thinker_attention")])
def test_ignore_tells_kept_from_quantized_under_either_name(published: Path, parts: tuple[str, ...]) -> None:
    made = plan.make(checkpoint.read_source(published), Recipe("NVFP4A16", parts=parts))
    kept = [n for n in made.owners if n not in made.quantized and n.endswith(("_proj.weight", "gate.weight"))]
    rules = plan.ignore_rules(made.source.tensors.keys() - made.quantized, made.quantized)
    assert len(rules) < 40
    assert all(matches(rules, name) for name in kept)
    assert not any(matches(rules, name) for name in made.quantized)


def test_layers_of_odd_width_stay_with_those_they_are_fused_with(text_model: Path) -> None:
    made = plan.make(checkpoint.read_source(text_model), Recipe("W4A16"))
    assert {n.split(".")[-2] for n in made.quantized} == {"down_proj"}
    assert {n.split(".")[-2] for n in made.left} == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"}
    assert "cannot divide" in made.left["model.layers.0.mlp.up_proj.weight"]
    rules = plan.ignore_rules(made.source.tensors.keys() - made.quantized, made.quantized)
    assert all(matches(rules, name) for name in made.left)


def test_nothing_left_to_quantize(text_model: Path) -> None:
    with pytest.raises(BadRequest, match="Nothing is left to quantize"):
        plan.make(checkpoint.read_source(text_model), Recipe("FP8_BLOCK", parts=("attention",)))


def test_fused_keys() -> None:
    layer = "thinker.model.layers.0"
    assert len({fused_with(f"{layer}.self_attn.{p}_proj.weight") for p in "qkv"}) == 1
    assert len({fused_with(f"{layer}.mlp.experts.1.{p}_proj.weight") for p in ("gate", "up")}) == 1
    assert len({fused_with(f"{layer}.mlp.experts.{e}.up_proj.weight") for e in "12"}) == 2


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (Recipe("MXFP4"), "no scheme MXFP4"),
        (Recipe("FP8_DYNAMIC", "gptq"), "cannot be made by 'gptq'"),
        (Recipe("NVFP4", group=64), "Only W4A16"),
        (Recipe("W4A16", group=48), "32, 64 or 128"),
        (Recipe("NVFP4", parts=("thinker_head",)), "Thinker lm_head stays BF16"),
        (Recipe("NVFP4", parts=("tower",)), "no part 'tower'"),
    ],
)
def test_impossible_recipes_are_refused(recipe: Recipe, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        decide(OMNI_PARTS, recipe)


def test_every_named_recipe_and_scheme_decides_every_part() -> None:
    recipes = [recipe for recipe, _ in RECIPES.values()] + [Recipe(name) for name in SCHEMES]
    for recipe in recipes:
        decisions = decide(OMNI_PARTS, recipe)
        assert [decision.part for decision in decisions] == list(OMNI_PARTS)
        assert all(decision.why for decision in decisions)


def test_only_calibrated_recipes_need_data() -> None:
    assert not Recipe("NVFP4A16").needs_data
    assert not Recipe("W4A16", "mse").needs_data
    assert Recipe("NVFP4").needs_data
    assert Recipe("W4A16", "gptq").needs_data
