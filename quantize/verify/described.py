"""Whether every layer is stored as config.json says: an engine makes room for its tensors by that alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from quantize import modelopt
from quantize.checkpoint import Checkpoint
from quantize.formats import Layer
from quantize.verify.alone import check
from quantize.verify.report import Check

_NAME = "layers as described"
_NUMBERS = {"nvfp4": ("float", 4), "fp8": ("float", 8), "int4": ("int", 4)}
_FORMATS = {
    "nvfp4": ("nvfp4-pack-quantized",), "fp8": ("float-quantized", "naive-quantized"), "int4": ("pack-quantized",),
}  # fmt: skip
_MODELOPT = {"NVFP4": "nvfp4", "W4A16_NVFP4": "nvfp4", "FP8": "fp8"}
_CALIBRATED = ("NVFP4", "FP8")
"""ModelOpt's algorithms that round inputs, too, by a scale that each layer must have."""


def described(result: Checkpoint, found: Mapping[str, Layer]) -> Check:
    if said := modelopt.declared(result):
        wrong = _unlike_modelopt(said.algorithm, found.values())
        return check(_NAME, wrong, f"as {said.where} says", f"are stored otherwise than {said.where} says")
    section = result.config.get("quantization_config")
    if not isinstance(section, Mapping) or section.get("quant_method") != "compressed-tensors":
        return Check(_NAME, True, "not checked: not described by compressed-tensors or ModelOpt")
    named = section.get("config_groups")
    groups = [group for group in named.values() if isinstance(group, Mapping)] if isinstance(named, Mapping) else []
    forms = [(group, group.get("format") or section.get("format")) for group in groups]
    wrong = [layer.name for layer in found.values() if not any(_is(layer, group, form) for group, form in forms)]
    return check(_NAME, wrong, "as config.json says", "are stored otherwise than config.json says")


def _unlike_modelopt(algorithm: str, found: Iterable[Layer]) -> list[str]:
    kind = _MODELOPT.get(algorithm)
    lacking = [layer for layer in found if layer.kind != kind or not _has_input_scale(layer, algorithm)]
    return [layer.name for layer in lacking] if kind else []


def _has_input_scale(layer: Layer, algorithm: str) -> bool:
    return algorithm not in _CALIBRATED or "input_scale" in layer.tensors


def _is(layer: Layer, group: Mapping[str, Any], form: object) -> bool:
    """Whether a group of config.json is a description of this layer."""
    weights, inputs = group.get("weights"), group.get("input_activations")
    if not isinstance(weights, Mapping) or form not in _FORMATS[layer.kind]:
        return False
    if (weights.get("type"), weights.get("num_bits")) != _NUMBERS[layer.kind]:
        return False
    wanted = isinstance(inputs, Mapping) and inputs.get("dynamic") is not True
    stored = bool(layer.tensors.keys() & {"input_global_scale", "input_scale"})
    scale = layer.tensors.get("weight_scale") or layer.tensors.get("weight_scale_inv")
    return stored == wanted and (scale is None or _scales(layer, weights) in (None, scale.count))


def _scales(layer: Layer, weights: Mapping[str, Any]) -> int | None:
    """How many scales the strategy gives; None where it is another one."""
    rows, columns = layer.shape
    match weights.get("strategy"), weights.get("group_size"), weights.get("block_structure"):
        case "tensor", _, _:
            return 1
        case "channel", _, _:
            return rows
        case "group" | "tensor_group", int(size), _ if size > 0:
            return rows * (columns // size)
        case "block", _, [int(high), int(wide)] if high > 0 and wide > 0:
            return math.ceil(rows / high) * math.ceil(columns / wide)
    return None
