"""BitsAndBytes 4-bit for the thinker's decoder, its experts included.

transformers 5 packs the experts of a layer in parameters [experts, out, in]. BitsAndBytes only sees `nn.Linear`, so
`BitsAndBytesConfig` by itself leaves the experts, nine tenths of the model, in BF16 and quantizes what should stay:
towers, lm_head, talker and code2wav. The quantizer here does it the other way round. Weights are read, put together and
quantized one parameter at a time, on the device they stay on, so the BF16 model is never in memory as a whole.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from bitsandbytes.nn import Params4bit
from torch import Size, Tensor, nn
from transformers import BitsAndBytesConfig
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name

from omni_app.engines.hf.sizes import double_quantized

QuantType = Literal["nf4", "fp4"]

_METHOD = "bitsandbytes_with_experts"
_KEPT = ["thinker.lm_head", "thinker.model.audio_tower", "thinker.model.visual", "talker", "code2wav"]
_AT_ONCE = 16
"""Pairs of token and expert whose matrices are unpacked together: 150 MB of the published model's."""


class PackedExperts(nn.Module):  # type: ignore[misc]
    """The experts of one layer in 4 bits, in place of transformers' packed BF16 ones."""

    source_cls = nn.Linear
    """What transformers' quantize operation wants to know of the module it quantizes a weight for."""

    def __init__(self, experts: Any, quant_type: QuantType) -> None:
        super().__init__()
        self.act_fn = experts.act_fn
        self.gate_up_proj = _to_quantize(experts.gate_up_proj, quant_type)
        self.down_proj = _to_quantize(experts.down_proj, quant_type)

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """hidden [tokens, hidden], index and weights [tokens, experts per token] -> [tokens, hidden]."""
        return (self._few if index.numel() <= _AT_ONCE else self._many)(hidden, index, weights)

    def _few(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """For decoding: all pairs in one product, without asking the device which experts were chosen."""
        pairs = hidden.repeat_interleave(index.shape[1], 0).unsqueeze(-1)
        gate, up = torch.bmm(unpacked(self.gate_up_proj, index.flatten()), pairs).chunk(2, dim=1)
        out = torch.bmm(unpacked(self.down_proj, index.flatten()), self.act_fn(gate) * up)
        return (out.view(*index.shape, -1) * weights.unsqueeze(-1)).sum(1).to(hidden.dtype)

    def _many(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """For prefill: each chosen expert once, for all of its tokens."""
        total = torch.zeros_like(hidden)
        for expert in index.unique():
            tokens, slots = torch.where(index == expert)
            gate, up = nn.functional.linear(hidden[tokens], unpacked(self.gate_up_proj, expert[None])[0]).chunk(2, -1)
            out = nn.functional.linear(self.act_fn(gate) * up, unpacked(self.down_proj, expert[None])[0])
            total.index_add_(0, tokens, (out * weights[tokens, slots, None]).to(total.dtype))
        return total


def _to_quantize(weight: Tensor, quant_type: QuantType) -> Params4bit:
    return Params4bit(
        weight.data, requires_grad=False, quant_type=quant_type, compress_statistics=double_quantized(weight.shape)
    )


def unpacked(packed: Params4bit, chosen: Tensor) -> Tensor:
    """The matrices of the chosen experts [chosen], repetitions included, as [chosen, out, in]."""
    state = packed.quant_state
    experts, rows, columns = state.shape

    def pick(flat: Tensor) -> Tensor:
        return flat.view(experts, -1)[chosen].flatten()

    nested = state.state2 and QuantState(
        pick(state.state2.absmax), None, state.state2.code, state.state2.blocksize, dtype=state.state2.dtype
    )
    part = QuantState(
        pick(state.absmax), Size((len(chosen) * rows, columns)), state.code, state.blocksize, state.quant_type,
        state.dtype, state.offset, nested,
    )  # fmt: skip
    return dequantize_4bit(pick(packed.data).unsqueeze(-1), part).view(len(chosen), rows, columns)


def packed_bytes(weight: Params4bit) -> int:
    """Bytes of a quantized weight and of all that is needed to unpack it."""
    state = weight.quant_state
    held = [weight.data, state.absmax, state.code]
    if state.state2 is not None:
        held += [state.state2.absmax, state.state2.code, state.offset]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


@register_quantization_config(_METHOD)
class WithExperts(BitsAndBytesConfig):  # type: ignore[misc]
    """What to give to `from_pretrained` as `quantization_config`."""

    def __init__(self, quant_type: QuantType) -> None:
        super().__init__(
            load_in_4bit=True, bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=_KEPT,
        )  # fmt: skip
        self.quant_method = _METHOD


@register_quantizer(_METHOD)
class WithExpertsQuantizer(Bnb4BitHfQuantizer):  # type: ignore[misc]
    def param_needs_quantization(self, model: Any, param_name: str, **more: Any) -> bool:
        module, _ = get_module_from_name(model, param_name)
        return isinstance(module, PackedExperts) or super().param_needs_quantization(model, param_name, **more)

    def _process_model_before_weight_loading(self, model: Any, device_map: Any, **more: Any) -> None:
        super()._process_model_before_weight_loading(model, device_map, **more)
        for layer in model.thinker.model.language_model.layers:
            if hasattr(layer.mlp, "experts"):
                layer.mlp.experts = PackedExperts(layer.mlp.experts, self.quantization_config.bnb_4bit_quant_type)
