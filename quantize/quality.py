"""How much a text model lost: perplexity, KL divergence and next-token agreement against the original, token by token.

In FP32 arithmetic, so that only quantization differs; activations are rounded as the serving engine would.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize import checkpoint, formats, reload
from quantize.checkpoint import Checkpoint
from quantize.verify import Weights

if TYPE_CHECKING:
    import torch

_WINDOW = 512
"""Tokens of each independent piece of text."""
_FP32_OVER_BF16 = 2.5
"""Memory over the size of the source, for its FP32 copy and the work."""


def held_out() -> str:
    """A text that no calibration set has: the reference in Python's own documentation."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))[:60_000]


def fits(source: Checkpoint, ram: int) -> bool:
    """Whether the comparison can run here. ram: free bytes."""
    return not source.is_omni and source.size * _FP32_OVER_BF16 < ram


def compare(source: Path, quantized: Path, text: str, windows: int = 8) -> dict[str, float]:
    """perplexity, perplexity_before, perplexity_ratio, kl (nats a token, from the original) and agreement (top 1)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(source)(text, return_tensors="pt").input_ids[0]
    pieces = [piece for piece in ids.split(_WINDOW)[:windows] if len(piece) > 1]
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.no_grad():
        before = [model(piece[None]).logits[0].log_softmax(-1) for piece in pieces]
        reload.put_weights(model, quantized)
        _round_inputs(model, quantized)
        sums = [_against(model(piece[None]).logits[0].log_softmax(-1), old, piece)
                for piece, old in zip(pieces, before, strict=True)]  # fmt: skip
    count = len(sums)
    loss, loss_before, divergence, agreement = (sum(column) / count for column in zip(*sums, strict=True))
    return {
        "perplexity": math.exp(loss),
        "perplexity_before": math.exp(loss_before),
        "perplexity_ratio": math.exp(loss - loss_before),
        "kl": divergence,
        "agreement": agreement,
    }


def _against(new: torch.Tensor, old: torch.Tensor, ids: torch.Tensor) -> tuple[float, float, float, float]:
    """Mean loss, mean loss before, KL and agreement. new, old: log-probabilities [tokens, vocabulary]."""
    target = ids[1:, None]
    loss, before = (-float(x[:-1].gather(1, target).mean()) for x in (new, old))
    divergence = float((old.exp() * (old - new)).sum(-1).mean())
    return loss, before, divergence, float((old.argmax(-1) == new.argmax(-1)).float().mean())


def _round_inputs(model: torch.nn.Module, quantized: Path) -> None:
    """Round each quantized layer's input to the activations' type, where the scheme has one."""
    from compressed_tensors.quantization import QuantizationConfig

    found = checkpoint.read(quantized)
    section = QuantizationConfig.model_validate(found.config["quantization_config"])
    activations = next(iter(section.config_groups.values())).input_activations
    if activations is None:
        return
    layers = formats.layers(found.tensors)
    weights = Weights(found)
    for name, module in model.named_modules():
        if name not in layers:
            continue
        scale = layers[name].tensors.get("input_global_scale")
        module.register_forward_pre_hook(_rounding(activations, weights.get(scale) if scale else None))


def _rounding(activations: Any, global_scale: torch.Tensor | None) -> Callable[..., tuple[torch.Tensor, ...]]:
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        scale, zero = compute_dynamic_scales_and_zp(args[0], activations, module, global_scale)
        rounded = fake_quantize(args[0], scale, zero, activations, global_scale=global_scale)
        return (rounded, *args[1:])

    return hook
