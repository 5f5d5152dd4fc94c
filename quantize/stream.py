"""Quantize straight from file to file: one shard and one group of layers in memory, whatever the model's size.

The arithmetic is llm-compressor's own (its model-free life cycle of a weight); what is ours is the order, so that
memory stays bounded, layers which engines fuse share one global scale, experts included, and each step can be told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize import device
from quantize.checkpoint import Tensor
from quantize.plan import Plan, module
from quantize.progress import Tell, silent

if TYPE_CHECKING:
    import torch
    from compressed_tensors.quantization import QuantizationScheme

Tensors = dict[str, "torch.Tensor"]
_MSE = "memoryless_mse"
NVFP4_RANGE = 448.0 * 6.0
"""Largest FP8 E4M3 scale times largest FP4 E2M1 value: what a layer's input range is spread over."""


def scheme_for(plan: Plan) -> QuantizationScheme:
    """The recipe as compressed-tensors describes it, its storage format included."""
    import torch
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import preset_name_to_scheme

    scheme = preset_name_to_scheme(plan.scheme.name, ["Linear"])
    assert scheme.weights is not None
    changes: dict[str, Any] = {}
    if plan.recipe.group:
        changes["group_size"] = plan.recipe.group
    if plan.recipe.algorithm in ("mse", "gptq-mse"):
        changes["observer"] = _MSE
    weights = scheme.weights.model_copy(update=changes)
    scheme = scheme.model_copy(update={"weights": weights})
    return scheme.model_copy(update={"format": infer_module_format(torch.nn.Linear, scheme)})


def write(
    plan: Plan, out: Path, scheme: QuantizationScheme, amax: Mapping[str, float] | None = None, tell: Tell = silent
) -> dict[str, str]:
    """Write every shard of the result into `out` and return which tensor lies in which file.

    amax: greatest absolute input of each module to quantize, where the scheme has calibrated activations.
    Peak memory is one source shard and its result.
    """
    from safetensors.torch import save_file

    where: dict[str, str] = {}
    done, total = 0, len(plan.groups)
    with _Reader(plan) as reader:
        for file in plan.source.files:
            result: Tensors = {}
            for group in _owned(plan, file):
                result |= _quantized(reader, group, scheme, amax)
                done += 1
                tell("quantize", done, total, module(group[0].name))
            result |= reader.untouched(file)
            if result:
                save_file(result, out / file, metadata={"format": "pt"})
                where |= dict.fromkeys(result, file)
            reader.close(file)
    return where


def _owned(plan: Plan, file: str) -> Iterator[tuple[Tensor, ...]]:
    """The groups that are written with this file: those whose first weight lies in it."""
    return (group for group in plan.groups.values() if group[0].file == file)


class _Reader:
    """The source's shards, each mapped when it is first needed and let go when it is done."""

    def __init__(self, plan: Plan) -> None:
        self._folder = plan.source.folder
        self._tensors = plan.source.tensors
        self._quantized = plan.quantized
        self._open: dict[str, tuple[Any, ExitStack]] = {}

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        for file in list(self._open):
            self.close(file)

    def close(self, file: str) -> None:
        if file in self._open:
            self._open.pop(file)[1].close()

    def get(self, tensor: Tensor) -> torch.Tensor:
        from safetensors import safe_open

        if tensor.file not in self._open:
            stack = ExitStack()
            self._open[tensor.file] = stack.enter_context(safe_open(self._folder / tensor.file, "pt")), stack
        found: torch.Tensor = self._open[tensor.file][0].get_tensor(tensor.name)
        return found

    def untouched(self, file: str) -> Tensors:
        """What is only copied from this file."""
        names = (t for t in self._tensors.values() if t.file == file and t.name not in self._quantized)
        return {tensor.name: self.get(tensor) for tensor in names}


def _quantized(
    reader: _Reader, group: tuple[Tensor, ...], scheme: QuantizationScheme, amax: Mapping[str, float] | None
) -> Tensors:
    """The tensors that stand for the weights of one fused group."""
    import torch

    weights = {module(tensor.name): reader.get(tensor).to(torch.bfloat16) for tensor in group}
    result = quantize_group(weights, scheme)
    if amax is not None:
        for name in weights:
            result[f"{name}.input_global_scale"] = torch.tensor([NVFP4_RANGE / amax[name]])
    return result


def quantize_group(weights: Mapping[str, torch.Tensor], scheme: QuantizationScheme) -> Tensors:
    """weights: [out, in] by module name, all of which share one global scale where the scheme has one."""
    assert scheme.weights is not None
    compute = partial(_compressed, weights, scheme)
    if scheme.weights.observer == _MSE:  # llm-compressor searches otherwise on a GPU, with other scales as the result
        return compute("cpu")
    return device.near(sum(weight.numel() for weight in weights.values()), compute)


def _compressed(weights: Mapping[str, torch.Tensor], scheme: QuantizationScheme, where: str) -> Tensors:
    """Computed on the device `where`, and brought back from it."""
    from compressed_tensors.compressors import compress_module
    from compressed_tensors.quantization import QuantizationStrategy
    from llmcompressor.entrypoints.model_free.lifecycle import initialize_quantized_linear
    from llmcompressor.modifiers.quantization.calibration import (
        apply_calibration_status,
        freeze_module_quantization,
        initialize_observer,
        observe,
        update_qparams,
    )
    from llmcompressor.observers import FusionHandler
    from llmcompressor.utils.dev import skip_weights_initialize

    weights_only = scheme.model_copy(update={"input_activations": None})
    with skip_weights_initialize():  # the weights are copied over what would be drawn, a third of the time for FP8
        layers = {name: initialize_quantized_linear(weight, weights_only, where) for name, weight in weights.items()}
    for layer in layers.values():
        initialize_observer(layer, "weight")
        apply_calibration_status(layer)
    assert scheme.weights is not None
    if scheme.weights.strategy == QuantizationStrategy.TENSOR_GROUP and len(layers) > 1:
        FusionHandler.fuse([(layer.weight_observer, layer) for layer in layers.values()])
    observe(layers.values(), base_name="weight")
    update_qparams(layers.values(), base_name="weight")
    result: Tensors = {}
    for name, layer in layers.items():
        freeze_module_quantization(layer)
        compress_module(layer)
        found = layer.state_dict(prefix=f"{name}.")
        result |= {key: value.detach().cpu().contiguous() for key, value in found.items()}
    return result
