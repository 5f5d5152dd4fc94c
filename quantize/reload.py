"""Put a quantized checkpoint's weights into a loaded model, as they will be used, to compare or to listen.

transformers 5 holds a layer's experts in two tensors and cannot load compressed ones, so the original is loaded and
each quantized layer's weights replace its own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from quantize import checkpoint, formats
from quantize.errors import ModelUnusable
from quantize.verify import Weights

if TYPE_CHECKING:
    import torch

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj$")


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
    return len(layers)


def _place(parameters: dict[str, torch.nn.Parameter], name: str) -> torch.Tensor:
    """Where a layer's weights live: a parameter of its own, or a slice of all experts' [expert, out, in]."""
    if f"{name}.weight" in parameters:
        return parameters[f"{name}.weight"]
    expert = _EXPERT.match(name)
    if expert is None:
        raise ModelUnusable(f"The model has no layer {name}; the checkpoint belongs to another model.")
    owner, number, kind = expert[1], int(expert[2]), expert[3]
    if kind == "down":
        return parameters[f"{owner}.down_proj"][number]
    both = parameters[f"{owner}.gate_up_proj"][number]
    half = both.shape[0] // 2
    return both[:half] if kind == "gate" else both[half:]
