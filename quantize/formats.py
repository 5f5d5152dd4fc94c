"""How a quantized layer lies in the files, told from its tensors alone, and its weights as they will be used.

Knows compressed-tensors' formats and ModelOpt's FP8 and NVFP4 (which stores the inverse of each global scale).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantize.checkpoint import Tensor
from quantize.plan import module

if TYPE_CHECKING:
    import torch

_SCALES = (
    "weight_scale", "weight_scale_inv", "weight_scale_2", "weight_global_scale",
    "input_global_scale", "input_scale",
)  # fmt: skip
ERROR_LIMITS = {"nvfp4": 0.2, "fp8": 0.08, "int4": 0.3}
"""Greatest relative weight error of a sound layer; Gaussian weights give 0.095, 0.026 and 0.11."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One quantized layer by the tensors that make it up."""

    name: str
    kind: str
    """nvfp4, fp8 or int4."""
    tensors: Mapping[str, Tensor]
    """By the last part of their names."""

    @property
    def codes(self) -> Tensor:
        return self.tensors.get("weight_packed") or self.tensors["weight"]

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in] of the weights."""
        rows, columns = self.codes.shape
        return rows, columns * {"nvfp4": 2, "int4": 8, "fp8": 1}[self.kind]

    @property
    def scales(self) -> list[Tensor]:
        return [tensor for last, tensor in self.tensors.items() if last in _SCALES]

    def problem(self) -> str:
        """What is wrong with the tensors' shapes, empty if nothing."""
        scale = self.tensors.get("weight_scale") or self.tensors.get("weight_scale_inv")
        if scale is None:
            return f"{self.name} has no weight_scale"
        if self.kind == "nvfp4" and not self.tensors.keys() & {"weight_global_scale", "weight_scale_2"}:
            return f"{self.name} has no global scale"
        if self.kind == "int4" and "weight_shape" not in self.tensors:
            return f"{self.name} has no weight_shape"
        rows, columns = self.shape
        expected: dict[str, list[tuple[int, ...]]] = {
            "nvfp4": [(rows, columns // 16)],
            "int4": [(rows, columns // group) for group in (32, 64, 128)],
            "fp8": [(rows, 1), (rows,), (), (1,), (math.ceil(rows / 128), math.ceil(columns / 128))],
        }
        allowed = expected[self.kind]
        if scale.shape not in allowed:
            return f"{self.name}: weight_scale is {list(scale.shape)}, not {list(allowed[0])} for {rows} x {columns}"
        return ""


def layers(tensors: Mapping[str, Tensor]) -> dict[str, Layer]:
    """Every quantized layer among the tensors, by name."""
    by_module: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        by_module[module(name)][name.rpartition(".")[2]] = tensor
    found = ((name, _kind(last), last) for name, last in by_module.items())
    return {name: Layer(name, kind, _own(last)) for name, kind, last in found if kind}


def _kind(last: Mapping[str, Tensor]) -> str:
    codes = last.get("weight_packed") or last.get("weight")
    if codes is None or len(codes.shape) != 2:
        return ""
    return {"U8": "nvfp4", "I32": "int4", "F8_E4M3": "fp8"}.get(codes.dtype, "")


def _own(last: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in last.items() if name != "bias"}


def dequantize(layer: Layer, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The layer's weights, F32 [out, in].

    values: its tensors by the last part of their names.
    """
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import preset_name_to_scheme

    names = {"nvfp4": ("NVFP4A16", "nvfp4-pack-quantized"), "fp8": ("FP8_DYNAMIC", "float-quantized")}
    preset, registry = names.get(layer.kind, ("W4A16", "pack-quantized"))
    scheme = preset_name_to_scheme(preset, ["Linear"])
    parts = _as_compressed_tensors(layer, values)
    if layer.kind == "fp8":
        return _fp8(parts["weight"], parts["weight_scale"])
    assert scheme.weights is not None
    if layer.kind == "int4":
        parts["weight_shape"] = torch.tensor(layer.shape)
        width = layer.shape[1] // parts["weight_scale"].shape[1]
        changes = {"group_size": width, "symmetric": "weight_zero_point" not in parts}
        scheme = scheme.model_copy(update={"weights": scheme.weights.model_copy(update=changes)})
    compressor = BaseCompressor.get_value_from_registry(registry)
    weight: torch.Tensor = compressor.decompress(parts, scheme)["weight"]
    return weight.float()


def _as_compressed_tensors(layer: Layer, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """ModelOpt's names and inverse scales as compressed-tensors has them; inputs' scales left out."""
    parts = {name: value for name, value in values.items() if not name.startswith("input_")}
    if layer.kind == "nvfp4" and "weight_packed" not in parts:
        parts["weight_packed"] = parts.pop("weight")
        parts["weight_global_scale"] = 1.0 / parts.pop("weight_scale_2").reshape(1)
    if "weight_scale_inv" in parts:
        parts["weight_scale"] = parts.pop("weight_scale_inv")
    return parts


def _fp8(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """codes: F8 [out, in]; scale: one, one a row, or one a block of 128 x 128."""
    weight, scale = codes.float(), scale.float()
    rows, columns = weight.shape
    if scale.dim() == 1 and scale.shape[0] == rows:
        scale = scale[:, None]
    blocks = scale.dim() == 2 and (scale.shape[1] > 1 or scale.shape[0] < rows)
    if blocks:
        scale = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    return weight * scale


def without_scales(tensors: Iterable[str]) -> set[str]:
    """Names that a source has too: quantization's own tensors named back to the weight they stand for."""
    own = {*_SCALES, "weight_packed", "weight_shape", "weight_zero_point"}
    names = set()
    for name in tensors:
        owner, _, last = name.rpartition(".")
        names.add(f"{owner}.weight" if last in own else name)
    return names
