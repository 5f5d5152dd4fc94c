"""How many bytes each part of Qwen3-Omni takes at a precision, by arithmetic on names and shapes; needs no torch."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

Precision = Literal["bf16", "nf4", "fp4", "fp32"]
Sizes = Mapping[str, int]
"""Bytes by part."""

BLOCK = 64
"""Weights that share a scale, BitsAndBytes' default."""
SCALES_BLOCK = 256
"""Scales that share a scale themselves ("double quantization", https://arxiv.org/abs/2305.14314, section 3)."""
_CODE = 16 * 4
_NESTED_CODE = 256 * 4 + 4
"""The values of 8-bit scales, and their offset."""

# Names as in checkpoints and, with `language_model`, in transformers. First match wins.
_DECODER = r"thinker\.model\.(language_model\.)?layers\.\d+\."
_PARTS = tuple(
    (part, re.compile(pattern))
    for part, pattern in (
        ("experts", _DECODER + r"mlp\.experts\."),
        ("attention", _DECODER + r"self_attn\.[qkvo]_proj\."),
        ("towers", r"thinker\.(model\.)?(audio_tower|visual)\."),
        ("embeddings", r"thinker\.(lm_head|model\.(language_model\.)?embed_tokens)\."),
        ("router and norms", r"thinker\."),
        ("talker", r"talker\."),
        ("code2wav", r"code2wav\."),
    )
)
_FOUR_BIT = ("experts", "attention")


def part_of(name: str) -> str:
    return next((part for part, pattern in _PARTS if pattern.match(name)), "other")


def is_four_bit(name: str, precision: Precision) -> bool:
    """Whether this parameter is quantized. The rest is small, or answers get worse without its last digits."""
    return precision in ("nf4", "fp4") and part_of(name) in _FOUR_BIT


def double_quantized(shape: Sequence[int]) -> bool:
    """Whether the scales are 8-bit too: with packed experts [experts, out, in] only where each expert fills whole
    blocks of scales, so that one expert can be taken out without touching the others'."""
    return len(shape) == 2 or math.prod(shape[1:]) % (BLOCK * SCALES_BLOCK) == 0


def stored(name: str, shape: Sequence[int], precision: Precision) -> int:
    """Bytes of one parameter with all that is needed to use it."""
    count = math.prod(shape)
    if not is_four_bit(name, precision):
        return count * (4 if precision == "fp32" else 2)
    scales = math.ceil(count / BLOCK)
    if double_quantized(shape):
        return math.ceil(count / 2) + _CODE + scales + 4 * math.ceil(scales / SCALES_BLOCK) + _NESTED_CODE
    return math.ceil(count / 2) + _CODE + 4 * scales


def estimate(parameters: Iterable[tuple[str, Sequence[int]]], precision: Precision) -> Sizes:
    """Bytes by part of a model with these parameters, experts packed as transformers 5 holds them."""
    sizes: Counter[str] = Counter()
    for name, shape in parameters:
        sizes[part_of(name)] += stored(name, shape, precision)
    return sizes


def in_words(before: Sizes, after: Sizes) -> str:
    """Gigabytes per part, and what became of them where that differs."""
    parts = (f"{part} {_change(before[part], after.get(part, 0))}" for part in before)
    return f"{_change(sum(before.values()), sum(after.values()))} GB ({', '.join(parts)})"


def _change(before: int, after: int) -> str:
    now = f"{after / 1e9:.3g}"
    return now if before == after else f"{before / 1e9:.3g} → {now}"
