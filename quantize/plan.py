"""From a checkpoint and a recipe to what happens to every tensor, and what config.json must then say."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from quantize.checkpoint import Checkpoint, Tensor
from quantize.errors import BadRequest, ModelUnusable
from quantize.schemes import Decision, Part, Recipe, Scheme, decide, fused_with, part_of, scheme_of

_RULES = (
    r".*lm_head.*", r".*visual\..*", r".*audio_tower\..*", r".*code2wav.*", r".*code_predictor.*", r".*codec_head$",
    r".*(text|hidden)_projection\..*", r".*mlp\.gate$", r".*shared_expert_gate$", r".*embed.*",
)  # fmt: skip
_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")
"""Of a layer or an expert; the 2 of code2wav is none."""
_WHOLE_PARTS = (r".*talker.*", r".*thinker.*mlp\.experts\..*", r".*self_attn\..*", r".*shared_experts?\..*")


@dataclass(frozen=True, slots=True)
class Plan:
    """All tensors of a checkpoint by what becomes of them."""

    source: Checkpoint
    recipe: Recipe
    scheme: Scheme
    decisions: tuple[Decision, ...]
    owners: Mapping[str, Part]
    groups: Mapping[str, tuple[Tensor, ...]]
    """Weights to quantize, together with those that engines fuse them with."""
    left: Mapping[str, str]
    """Weights of chosen parts that stay BF16 all the same, and why."""

    quantized: frozenset[str]
    """Names of the weights to quantize."""


def make(source: Checkpoint, recipe: Recipe) -> Plan:
    """Raises BadRequest for a recipe that leaves nothing to quantize, ModelUnusable for unknown tensors."""
    scheme = scheme_of(recipe)
    owners = _owners(source)
    present = {part.name for part in owners.values()}
    parts = tuple(part for part in source.parts if part.name in present)
    decisions = tuple(decide(parts, recipe))
    chosen = {decision.part.name for decision in decisions if decision.quantized}
    groups, left = _groups(source, owners, chosen, scheme)
    if not groups:
        raise BadRequest(
            f"Nothing is left to quantize: no layer of the chosen parts has sizes that {scheme.name} can divide "
            f"(a multiple of {scheme.group or 8} input columns)."
        )
    quantized = frozenset(tensor.name for group in groups.values() for tensor in group)
    return Plan(source, recipe, scheme, decisions, owners, groups, left, quantized)


def _owners(source: Checkpoint) -> dict[str, Part]:
    found = {name: part_of(source.parts, name) for name in source.tensors}
    if unknown := next((name for name, part in found.items() if part is None), None):
        raise ModelUnusable(f"{unknown} belongs to no part of {source.architecture} that is known here.")
    return {name: part for name, part in found.items() if part is not None}


def _groups(
    source: Checkpoint, owners: Mapping[str, Part], chosen: set[str], scheme: Scheme
) -> tuple[dict[str, tuple[Tensor, ...]], dict[str, str]]:
    together: dict[str, list[Tensor]] = defaultdict(list)
    for name, part in owners.items():
        if part.name in chosen:
            together[_all_or_none(name)].append(source.tensors[name])
    groups: dict[str, list[Tensor]] = defaultdict(list)
    left: dict[str, str] = {}
    for tensors in together.values():
        if odd := next((t for t in tensors if len(t.shape) != 2 or not scheme.divides(t.shape)), None):
            why = f"{scheme.name} cannot divide {odd.name.rsplit('.', 2)[-2]} of {list(odd.shape)}"
            left |= {tensor.name: why for tensor in tensors}
            continue
        for tensor in tensors:
            groups[fused_with(tensor.name)].append(tensor)
    return {key: tuple(sorted(group, key=lambda t: t.name)) for key, group in groups.items()}, left


def _all_or_none(name: str) -> str:
    """Engines give all experts of a layer one scheme, and fused layers too: they are left or quantized as one."""
    return re.sub(r"(\.mlp\.experts)\..*", r"\1", fused_with(name))


def ignore_rules(kept: Iterable[str], quantized: Iterable[str]) -> list[str]:
    """The `ignore` list of config.json: regexes, since plain names miss vllm-omni's own module names.

    vllm-omni puts `language_model.` into them (thinker.language_model.model.layers.0.mlp.gate), and matches `re:`
    patterns from the start of the name.

    kept, quantized: tensor names. Every kept module is matched under either name, no quantized one is.
    """
    layers = {module(name) for name in quantized}
    modules = {module(name) for name in kept} - layers
    layer_forms, forms = {_form(name) for name in layers}, {_form(name) for name in modules}
    rules = [rule for rule in _RULES + _WHOLE_PARTS if not any(re.match(rule, form) for form in layer_forms)]
    missed = {form for form in forms if _linear(form) and not any(re.match(rule, form) for rule in rules)}
    loose = [name for name in sorted(modules) if _form(name) in missed]
    own = dict.fromkeys(_regex(name, any_layer=_form(name) not in layer_forms) for name in loose)
    used = [rule for rule in rules if rule in _RULES or any(re.match(rule, form) for form in forms)]
    return [f"re:{rule}" for rule in [*used, *own]]


def _form(name: str) -> str:
    """A module's name whatever its layer or expert: a model has a hundred forms and ten thousand names."""
    return _INDEX.sub("0", name)


def _regex(name: str, any_layer: bool) -> str:
    owner = name.split(".")[0]
    head, _, tail = name.rpartition("model.layers.")
    pattern = re.escape(tail if head or name.startswith("model.layers.") else name)
    if any_layer:
        pattern = re.sub(r"(?:^|(?<=\.))\d+(?=\\|$)", lambda _: r"\d+", pattern)
    if not tail or tail == name:
        return f".*{pattern}$"
    return f".*{owner}.*model\\.layers\\.{pattern}$" if owner in ("thinker", "talker") else f".*layers\\.{pattern}$"


def _linear(name: str) -> bool:
    return not re.search(r"(norm|embedding|embed_tokens|rotary)", name.rsplit(".", 1)[-1])


def module(tensor: str) -> str:
    """The module that a tensor belongs to."""
    return tensor.rpartition(".")[0]
