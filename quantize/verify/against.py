"""Checks against the model that the result was made from: nothing lost, nothing else changed, weights near."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from quantize import device, formats
from quantize.checkpoint import Checkpoint, Tensor, without_quantizer
from quantize.formats import ERROR_LIMITS, Layer
from quantize.progress import Tell
from quantize.schemes import part_of
from quantize.verify.alone import check
from quantize.verify.report import Check, DepthError, LayerError
from quantize.weights import Weights

if TYPE_CHECKING:
    import torch

_NORM = re.compile(r"\.(input|post_attention)_layernorm\.weight$")
_NORM_READER = re.compile(r"(.*\.layers\.\d+)\.mlp\.(gate|shared_expert_gate)\.weight$")
_DEPTH = re.compile(r"\.layers\.(\d+)\.")
_SMOOTHING_ERROR = 0.01
"""AWQ moves scale from a norm into all that read it, the router too: their product must stay, but for rounding."""
_SIDE_FILES = {".json", ".jinja", ".txt", ".model"}


@dataclass(frozen=True, slots=True)
class Pair:
    """A quantized checkpoint and its source, with the weights of both."""

    result: Checkpoint
    original: Checkpoint
    layers: Mapping[str, Layer]
    after: Weights
    before: Weights

    @property
    def _recipe(self) -> str:
        recipe = self.result.folder / "recipe.yaml"
        return recipe.read_text() if recipe.is_file() else ""

    @property
    def smoothed(self) -> bool:
        """Whether AWQ moved scale from the norms into the weights, so that neither can be compared alone."""
        return "AWQModifier" in self._recipe

    @property
    def limit_factor(self) -> float:
        """GPTQ gives up nearness of single weights for nearness of outputs."""
        return 2.0 if "GPTQModifier" in self._recipe else 1.0


def accounted(pair: Pair) -> Check:
    """Every tensor of the original is there, quantized or copied, and nothing else is."""
    names, originals = formats.without_scales(pair.result.tensors), pair.original.tensors
    wrong = [f"{name} is missing" for name in originals.keys() - names]
    wrong += [f"{name} is not in the original" for name in names - originals.keys()]
    for layer in pair.layers.values():
        exact = originals.get(f"{layer.name}.weight")
        if exact is not None and layer.shape != exact.shape:
            wrong.append(f"{layer.name} is {layer.shape}, not {exact.shape}")
    copied = len(originals) - len(pair.layers)
    return check("every tensor", wrong, f"{len(pair.layers)} quantized, {copied} copied, none missing", "wrong")


def side_files(pair: Pair) -> Check:
    bad = [file.name for file in _side_files(pair.original.folder) if not _whole(pair.result.folder / file.name, file)]
    if _plain(pair.result) != _plain(pair.original):
        bad.append("config.json differs from the original beyond quantization_config")
    return check(
        "side files", bad, "tokenizer, processor and template are whole, config.json is the original's", "wrong"
    )


def _side_files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.iterdir() if file.suffix in _SIDE_FILES and "index" not in file.name)


def _whole(file: Path, original: Path) -> bool:
    """Whether it is there and not cut off; tools write the same tokenizer in several ways, so bytes may differ."""
    try:
        held = file.read_bytes()
        return held == original.read_bytes() or (json.loads(held) is not None if file.suffix == ".json" else bool(held))
    except (OSError, ValueError, RecursionError):
        return False


def _plain(found: Checkpoint) -> Mapping[str, object]:
    return without_quantizer(found.config)


def identical(pair: Pair) -> Check:
    """Whatever was not quantized is the original's bit by bit."""
    quantized = {f"{name}.weight" for name in pair.layers}
    same = (pair.result.tensors.keys() & pair.original.tensors.keys()) - quantized
    ordered = sorted(same, key=lambda name: (pair.original.tensors[name].file, name))
    keeps = _keeps_its_product if pair.smoothed else _keeps_its_bits
    changed = [name for name in ordered if not keeps(pair, name)]
    return check("untouched parts", changed, f"{len(same)} tensors are bit-identical to the original", "differ from it")


def _both(pair: Pair, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    return pair.after.get(pair.result.tensors[name]), pair.before.get(pair.original.tensors[name])


def _keeps_its_bits(pair: Pair, name: str) -> bool:
    import torch

    one, other = _both(pair, name)
    return (one.dtype, one.shape) == (other.dtype, other.shape) and bool(torch.equal(_bits(one), _bits(other)))


def _keeps_its_product(pair: Pair, name: str) -> bool:
    """As above but for norms that were smoothed, and for routers, which must keep what they make of the norm."""
    if _NORM.search(name):
        return True
    reader = _NORM_READER.match(name)
    if reader is None:
        return _keeps_its_bits(pair, name)
    one, other = (weight.float() for weight in _both(pair, name))
    norm, exact_norm = (weight.float() for weight in _both(pair, f"{reader[1]}.post_attention_layernorm.weight"))
    exact = other * exact_norm
    return bool((one * norm - exact).norm() <= _SMOOTHING_ERROR * exact.norm())


def _bits(value: torch.Tensor) -> torch.Tensor:
    import torch

    return value.contiguous().reshape(-1).view(torch.uint8)


def errors(pair: Pair, tell: Tell) -> Iterator[LayerError]:
    """How far each quantized layer's weights are from the original's; none where AWQ rescaled them."""
    if pair.smoothed:
        return
    for number, layer in enumerate(pair.layers.values(), 1):
        source = pair.original.tensors.get(f"{layer.name}.weight")
        if source is None or layer.problem() or layer.shape != source.shape:
            continue
        error = device.near(source.count, partial(_relative_error, pair, layer, source))
        tell("verify", number, len(pair.layers), layer.name)
        yield LayerError(layer.name, layer.kind, error)


def _relative_error(pair: Pair, layer: Layer, source: Tensor, where: str) -> float:
    exact = pair.before.get(source).to(where).float()
    return float((pair.after.layer(layer, where) - exact).norm() / exact.norm().clamp_min(1e-30))


def precise(found: tuple[LayerError, ...], pair: Pair) -> Check:
    name = "weights near the original"
    if pair.smoothed:
        return Check(name, True, "not compared: AWQ rescaled them; the outputs are what counts")
    bad = [e for e in found if or_infinite(e.relative) > ERROR_LIMITS[e.kind] * pair.limit_factor]
    mean = _mean([or_infinite(e.relative) for e in found])
    return check(name, [f"{e.layer} ({e.relative:.3f})" for e in bad],
                 f"mean relative error {mean:.4f} over {len(found)} layers", "are too far from it")  # fmt: skip


def or_infinite(value: float) -> float:
    return value if value == value else float("inf")


def by_part(original: Checkpoint, found: Iterable[LayerError]) -> dict[str, float]:
    """Mean relative error."""
    parts: dict[str, list[float]] = defaultdict(list)
    for error in found:
        parts[_part(original, error)].append(error.relative)
    return {part: _mean(values) for part, values in parts.items()}


def by_depth(original: Checkpoint, found: Iterable[LayerError]) -> tuple[DepthError, ...]:
    places: dict[tuple[str, int], list[float]] = defaultdict(list)
    for error in found:
        if depth := _DEPTH.search(error.layer):
            places[_part(original, error), int(depth[1])].append(or_infinite(error.relative))
    return tuple(
        DepthError(part, depth, _mean(values), max(values), len(values))
        for (part, depth), values in sorted(places.items())
    )


def _part(original: Checkpoint, error: LayerError) -> str:
    part = part_of(original.parts, f"{error.layer}.weight")
    return part.name if part else "unknown"


def _mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)
