"""Put a quantized checkpoint into a loaded model as it will be used, to compare or to listen.

transformers 5 holds a layer's experts in two tensors and cannot load compressed ones, so the original is loaded and
the checkpoint's weights replace its own: the dequantized ones, and every other that differs (AWQ rescales norms).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize import checkpoint, formats
from quantize.errors import ModelUnusable
from quantize.formats import Layer
from quantize.weights import Weights

if TYPE_CHECKING:
    import torch

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj$")
_SMOOTHED = re.compile(r".*(norm|\.mlp\.gate|\.mlp\.shared_expert_gate)\.weight$")
"""What may differ from the original without being quantized."""


def put_weights(model: torch.nn.Module, quantized: Path) -> int:
    """Returns how many layers were replaced. Raises ModelUnusable where the model has no such layer."""
    import torch

    found = checkpoint.read(quantized)
    weights = Weights(found)
    parameters = dict(model.named_parameters())
    layers = formats.layers(found.tensors)
    with torch.no_grad():
        for name, layer in layers.items():
            _place(parameters, name).copy_(weights.layer(layer))
        for name, tensor in found.tensors.items():
            if _SMOOTHED.match(name) and name in parameters:
                parameters[name].copy_(weights.get(tensor))
    return len(layers)


def _place(parameters: dict[str, torch.nn.Parameter], name: str) -> torch.Tensor:
    """Where a layer's weights live: a parameter of its own, or a slice of all experts' [expert, out, in]."""
    if f"{name}.weight" in parameters:
        return parameters[f"{name}.weight"]
    expert = _EXPERT.match(name)
    if expert is None or f"{expert[1]}.down_proj" not in parameters:
        raise ModelUnusable(f"The model has no layer {name}; the checkpoint belongs to another model.")
    owner, number, kind = expert[1], int(expert[2]), expert[3]
    if kind == "down":
        return parameters[f"{owner}.down_proj"][number]
    both = parameters[f"{owner}.gate_up_proj"][number]
    half = both.shape[0] // 2
    return both[:half] if kind == "gate" else both[half:]


def round_inputs(model: torch.nn.Module, quantized: Path) -> int:
    """Round each quantized layer's input to the activations' type, as the serving engine will; returns how many do.

    Experts held in one tensor become layers of their own first, so that each has an input to round.
    """
    found = checkpoint.read(quantized)
    activations = _activations(found)
    if activations is None:
        return 0
    from llmcompressor.modeling.moe.linearize import linearize_moe

    linearize_moe(model)
    layers, weights, count = formats.layers(found.tensors), Weights(found), 0
    for name, module in model.named_modules():
        if name in layers:
            module.register_forward_pre_hook(_rounding(activations, _input_scale(layers[name], weights)))
            count += 1
    return count


def _activations(found: checkpoint.Checkpoint) -> Any:
    """How inputs are quantized, None if they are not, or otherwise than by compressed-tensors or ModelOpt's NVFP4."""
    from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme

    layers = formats.layers(found.tensors).values()
    if any(layer.kind == "nvfp4" and "input_scale" in layer.tensors for layer in layers):
        return preset_name_to_scheme("NVFP4", ["Linear"]).input_activations
    section = checkpoint.quantizer_sections(found.config).get("quantization_config", {})
    if section.get("quant_method") != "compressed-tensors":
        return None
    groups = QuantizationConfig.model_validate(section).config_groups
    return next(iter(groups.values())).input_activations


def _input_scale(layer: Layer, weights: Weights) -> torch.Tensor | None:
    """What an input is multiplied by before it is rounded: F32 [1], which ModelOpt stores as its inverse."""
    if found := layer.tensors.get("input_global_scale"):
        return weights.get(found)
    found = layer.tensors.get("input_scale")
    return weights.get(found).float().reshape(1).reciprocal() if found else None


def _rounding(activations: Any, global_scale: torch.Tensor | None) -> Callable[..., tuple[torch.Tensor, ...]]:
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if not args[0].numel():
            return args
        shared = None if global_scale is None else global_scale.to(args[0].device)
        scale, zero = compute_dynamic_scales_and_zp(args[0], activations, module, shared)
        rounded = fake_quantize(args[0], scale, zero, activations, global_scale=shared)
        return (rounded, *args[1:])

    return hook
