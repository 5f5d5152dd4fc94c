"""Checks that need nothing but the quantized folder: shapes, scales, and what may be quantized at all."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from quantize import formats
from quantize.checkpoint import Checkpoint, Tensor
from quantize.formats import Layer
from quantize.plan import module
from quantize.schemes import fused_with, part_of
from quantize.verify.report import Check
from quantize.weights import Weights

if TYPE_CHECKING:
    import torch

_SHOWN = 10
_SCALE_BOUNDS = {
    "input_global_scale": (1e-4, 1e10), "weight_global_scale": (1e-2, 1e12), "weight_scale_2": (1e-12, 1e2),
}  # fmt: skip
"""2688 / amax of any weight or activation that a BF16 model really has, or in ModelOpt's files its inverse.
Uninitialised memory rarely keeps to it."""
_SHARED = ("weight_global_scale", "input_global_scale", "weight_scale_2", "input_scale")


def checks(result: Checkpoint, found: Mapping[str, Layer], weights: Weights) -> Iterator[Check]:
    yield _something(found)
    yield _shapes(found, weights)
    yield _scales(found, weights)
    yield _fused(found, weights)
    yield _protected(result, found)
    yield _alike(result, found)


def check(name: str, offenders: Iterable[str], good: str, bad: str) -> Check:
    """Failed where there are offenders. good, bad: what to say in either case."""
    found = sorted(set(offenders))
    detail = f"{len(found)} {bad}, {found[0]} for one" if found else good
    return Check(name, not found, detail, tuple(found[:_SHOWN]))


def _something(found: Mapping[str, Layer]) -> Check:
    kinds = ", ".join(sorted({layer.kind for layer in found.values()}))
    return Check(
        "quantized layers", bool(found), f"{len(found)} ({kinds})" if found else "none: this is no quantized model"
    )


def _shapes(found: Mapping[str, Layer], weights: Weights) -> Check:
    problems = [problem for layer in found.values() if (problem := layer.problem() or _said_shape(layer, weights))]
    return check("packed shapes", problems, f"{len(found)} layers have all their tensors in the right shape", "do not")


def _said_shape(layer: Layer, weights: Weights) -> str:
    """What is wrong with the shape that an INT4 layer tells of itself, empty if nothing."""
    said = layer.tensors.get("weight_shape")
    if said is None or (told := tuple(weights.get(said).tolist())) == layer.shape:
        return ""
    return f"{layer.name} says that it is {list(told)}, not {list(layer.shape)}"


def _scales(found: Mapping[str, Layer], weights: Weights) -> Check:
    scales = [tensor for layer in found.values() for tensor in layer.scales]
    bad = [tensor.name for tensor in scales if not _sound(tensor, weights.get(tensor))]
    return check(
        "scales", bad, f"{len(scales)} are finite, positive and plausible", "are not finite and positive, or absurd"
    )


def _sound(tensor: Tensor, value: torch.Tensor) -> bool:
    low, high = _SCALE_BOUNDS.get(tensor.name.rpartition(".")[2], (0.0, 1e12))
    value = value.float()
    return bool(value.isfinite().all() and (value > low).all() and (value < high).all())


def _fused(found: Mapping[str, Layer], weights: Weights) -> Check:
    """Engines fuse q, k and v, and gate and up, under one global scale and one input scale."""
    by_key: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for name, layer in found.items():
        for last in _SHARED if layer.kind == "nvfp4" else ():
            if last in layer.tensors and layer.tensors[last].count == 1:
                by_key[fused_with(f"{name}.weight"), last][name] = float(weights.get(layer.tensors[last]))
    odd = [f"{min(group)}.{last}" for (_, last), group in by_key.items() if len(set(group.values())) > 1]
    return check("fused layers", odd, "q/k/v and gate/up share their global scales", "differ within a fused layer")


def _protected(result: Checkpoint, found: Mapping[str, Layer]) -> Check:
    bad = []
    for name in found:
        part = part_of(result.parts, f"{name}.weight")
        if part is None or not part.choosable:
            bad.append(f"{name} ({part.label if part else 'unknown part'})")
    return check(
        "parts kept in BF16", bad, "routers, heads, towers and codec are not quantized", "layers must not be quantized"
    )


def _alike(result: Checkpoint, found: Mapping[str, Layer]) -> Check:
    """Fused layers, and all experts of a layer, must be of one kind."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for name in formats.without_scales(result.tensors):
        if name.endswith("_proj.weight"):
            layer = found.get(module(name))
            key = re.sub(r"(\.mlp\.experts)\..*", r"\1", fused_with(name))
            kinds[key].add(layer.kind if layer else "BF16")
    mixed = [key for key, kind in kinds.items() if len(kind) > 1]
    return check("one kind a layer", mixed, "experts and fused layers are each of one kind", "mix quantized and not")
