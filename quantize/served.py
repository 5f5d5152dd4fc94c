"""A result as the app's server will find it, before it exists: what a memory plan for serving it is made from.

`omni_app.server.profile.plan` takes an `omni_app.server.checkpoint.Checkpoint`. `Served` has that class's fields by
the same names, but for `folder`, which the result will be; its parts are named and told apart as there.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantize.plan import Plan, module

_PARTS = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("audio_tower", r"thinker\.audio_tower\."),
        ("visual", r"thinker\.visual\."),
        ("lm_head", r"thinker\.lm_head\."),
        ("embeddings", r"thinker\.model\.embed_tokens\."),
        ("experts", r"thinker\.model\.layers\.\d+\.mlp\.experts\."),
        ("attention", r"thinker\.model\.layers\.\d+\.self_attn\."),
        ("router", r"thinker\.model\.layers\.\d+\.mlp\.gate\."),
        ("norms", r"thinker\."),
        ("code_predictor", r"talker\.code_predictor\."),
        ("talker", r"talker\.model\.layers\.\d+\.(self_attn|mlp\.experts|mlp\.shared_expert)\."),
        ("talker_other", r"talker\."),
        ("code2wav", r"code2wav\."),
    )
)
_FORMATS = {"NVFP4": "nvfp4", "NVFP4A16": "nvfp4a16", "FP8_DYNAMIC": "fp8", "FP8_BLOCK": "fp8", "W4A16": "w4a16"}
_TENSORS = {"nvfp4": 4, "nvfp4a16": 3, "fp8": 2, "w4a16": 3}
"""That stand for one weight."""
_FLOATS = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}


@dataclass(frozen=True, slots=True)
class ServedPart:
    name: str
    size: int
    """Bytes on disk, which is what they take on the GPU as well."""
    formats: tuple[str, ...]
    """nvfp4, nvfp4a16, fp8, w4a16 where any of its layers is quantized, or else its float type; the commonest first."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """What the KV cache of a language model is made of."""

    layers: int
    kv_heads: int
    heads: int
    head_dim: int
    hidden: int
    positions: int


@dataclass(frozen=True, slots=True)
class Served:
    parts: Mapping[str, ServedPart]
    method: str
    thinker: Decoder
    talker: Decoder | None
    speakers: tuple[str, ...]
    speaks: bool
    tensors: int


def predict(plan: Plan) -> Served | None:
    """The result's parts and decoders, None for a model that the server does not take."""
    thinker = _decoder(plan.source.config.get("thinker_config"))
    if not plan.source.is_omni or thinker is None:
        return None
    section = plan.source.config.get("talker_config")
    talker = _decoder(section)
    parts = _parts(plan)
    voiced = {"talker", "code2wav"} <= parts.keys() and plan.source.config.get("enable_audio_output", True)
    speakers = tuple(section.get("speaker_id") or ()) if section and talker else ()
    more = len(plan.quantized) * (_TENSORS[_FORMATS[plan.scheme.name]] - 1)
    return Served(parts, "compressed-tensors", thinker, talker, speakers, bool(voiced and talker),
                  len(plan.source.tensors) + more)  # fmt: skip


def _parts(plan: Plan) -> dict[str, ServedPart]:
    sizes: Counter[str] = Counter()
    formats: dict[str, dict[str, str]] = defaultdict(dict)
    for name, tensor in plan.source.tensors.items():
        part = next((part for part, pattern in _PARTS if pattern.match(name)), "unknown")
        packed = name in plan.quantized
        sizes[part] += plan.scheme.bytes_of(tensor.shape) if packed else tensor.size
        if packed or name.endswith(".weight") or module(name) not in formats[part]:
            formats[part][module(name)] = _FORMATS[plan.scheme.name] if packed else _FLOATS.get(tensor.dtype, "buffer")
    return {name: ServedPart(name, size, _commonest(formats[name])) for name, size in sizes.items()}


def _commonest(formats: Mapping[str, str]) -> tuple[str, ...]:
    counts = Counter(formats.values())
    quantized = Counter({form: n for form, n in counts.items() if form in _FORMATS.values()})
    return tuple(form for form, _ in (quantized or counts).most_common())


def _decoder(section: Any) -> Decoder | None:
    """None where config.json lacks what a decoder is told by."""
    try:
        c = section["text_config"]
        heads, hidden = int(c["num_attention_heads"]), int(c["hidden_size"])
        layers, kv_heads, positions = (
            int(c[name]) for name in ("num_hidden_layers", "num_key_value_heads", "max_position_embeddings")
        )
        return Decoder(layers, kv_heads, heads, int(c.get("head_dim") or hidden // heads), hidden, positions)
    except (KeyError, TypeError, ValueError):
        return None
