"""What each scheme does to each part of a model: the one table that everything else reads.

Sizes follow compressed-tensors 0.19's formats; what may be quantized follows what vllm-omni 0.30 builds with a
quantization config (its thinker and talker decoders, and nothing else).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache

from quantize.errors import BadRequest

_BF16_BYTES = 2


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a model, told by its tensors' names."""

    name: str
    label: str
    pattern: str
    """Matched from the start of a tensor's name; the first part that matches owns the tensor."""
    why: str
    """For a choosable part what quantizing it means; for any other why it stays BF16."""
    choosable: bool = False


_TOWER = "vllm-omni builds the towers without quantization, so packed tensors could not be loaded"
_ROUTER = "it decides which experts run; one wrong choice costs more than its few bytes, and engines build it as BF16"
_HEAD = "it feeds sampling directly, and 4 bits there are heard and read at once"
_SPEECH = "it shapes the voice; errors here are audible, and vllm-omni never quantizes it"
_NOT_LINEAR = "not a linear layer; no scheme applies"
_ATTENTION = r"model\.layers\.\d+\.self_attn\.[qkvo]_proj\.weight$"
_DENSE = r"model\.layers\.\d+\.mlp\.(?:experts\.\d+\.)?(?:gate|up|down)_proj\.weight$"

OMNI_PARTS = (
    Part("audio_tower", "Audio tower", r"thinker\.audio_tower\.", _TOWER),
    Part("vision_tower", "Vision tower", r"thinker\.visual\.", _TOWER),
    Part("thinker_head", "Thinker lm_head", r"thinker\.lm_head\.", _HEAD),
    Part("thinker_embeddings", "Thinker embeddings", r"thinker\.model\.embed_tokens\.", _NOT_LINEAR),
    Part("thinker_attention", "Thinker attention", rf"thinker\.{_ATTENTION}",
         "3 % of the weights, read for every token", choosable=True),
    Part("thinker_experts", "Thinker experts", rf"thinker\.{_DENSE}",
         "82 % of the weights: where the bytes are, and the part that bears rounding best", choosable=True),
    Part("thinker_router", "Thinker router", r"thinker\.model\.layers\.\d+\.mlp\.gate\.", _ROUTER),
    Part("thinker_norms", "Thinker norms", r"thinker\.", _NOT_LINEAR),
    Part("code_predictor", "Code predictor", r"talker\.code_predictor\.", _SPEECH),
    Part("codec_head", "Codec head", r"talker\.codec_head\.", _HEAD),
    Part("talker_projections", "Talker projections", r"talker\.(?:text|hidden)_projection\.",
         "they carry the thinker's state into the voice; vllm-omni builds them as plain BF16 layers"),
    Part("talker_attention", "Talker attention", rf"talker\.{_ATTENTION}",
         "saves little and risks the voice", choosable=True),
    Part("talker_experts", "Talker experts", rf"talker\.{_DENSE}",
         "3 GB of the talker; a risk to the voice that wants listening to", choosable=True),
    Part("talker_shared_experts", "Talker shared experts",
         r"talker\.model\.layers\.\d+\.mlp\.shared_expert\.(?:gate|up|down)_proj\.weight$",
         "runs for every frame of speech; saves 0.1 GB", choosable=True),
    Part("talker_router", "Talker router", r"talker\.model\.layers\.\d+\.mlp\.(?:gate|shared_expert_gate)\.", _ROUTER),
    Part("talker_embeddings", "Talker embeddings", r"talker\.model\.codec_embedding\.", _NOT_LINEAR),
    Part("talker_norms", "Talker norms", r"talker\.", _NOT_LINEAR),
    Part("code2wav", "Code2wav", r"code2wav\.", _SPEECH),
)  # fmt: skip
TEXT_PARTS = (
    Part("head", "lm_head", r"(?:.*\.)?lm_head\.", _HEAD),
    Part("embeddings", "Embeddings", r".*embed", _NOT_LINEAR),
    Part("attention", "Attention", rf"(?:.*\.)?{_ATTENTION}", "read for every token", choosable=True),
    Part("experts", "Experts or MLP", rf"(?:.*\.)?{_DENSE}", "most of the weights", choosable=True),
    Part("shared_experts", "Shared experts",
         r"(?:.*\.)?model\.layers\.\d+\.mlp\.shared_experts?\.(?:gate|up|down)_proj\.weight$",
         "runs for every token", choosable=True),
    Part("router", "Router", r".*\.mlp\.(?:gate|shared_expert_gate)\.", _ROUTER),
    Part("rest", "Norms and the rest", r"", _NOT_LINEAR),
)  # fmt: skip
DEFAULT_OMNI_PARTS = ("thinker_attention", "thinker_experts")


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a quantized layer is stored, and what making it needs."""

    name: str
    label: str
    weight_bits: int
    group: int
    """Input columns that share one weight scale; 0: the whole row."""
    row_block: int
    """Rows that share one weight scale."""
    scale_bytes: int
    packed: bool
    """Whether several weights share one stored word."""
    calibrated_activations: bool
    algorithms: tuple[str, ...]
    million_weights_per_second: float
    """Round-to-nearest on two CPU cores, measured by benchmarks/quantize_memory.py."""
    serving: str
    """What it runs on in vllm-omni 0.30."""

    def divides(self, shape: tuple[int, ...]) -> bool:
        """Whether a weight of [out, in] can be stored so that every reader agrees."""
        rows, columns = shape
        return columns % (self.group or 1) == 0 and rows % self.row_block == 0 and columns % 8 == 0

    def bytes_of(self, shape: tuple[int, ...]) -> int:
        """Bytes on disk of a quantized weight of [out, in], its scales included."""
        rows, columns = shape
        scales = math.ceil(rows / self.row_block) * (columns // self.group if self.group else 1)
        extra = {"NVFP4": 8, "NVFP4A16": 4, "W4A16": 16}.get(self.name, 0)
        return rows * columns * self.weight_bits // 8 + scales * self.scale_bytes + extra


_MOE_BACKEND = "needs `moe_backend: auto` or `marlin` on the stage, never triton"
SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("NVFP4", "NVFP4 weights and activations (W4A4)", 4, 16, 1, 1, True, True,
               ("rtn", "mse", "gptq", "gptq-mse", "awq"), 4.0,
               f"FP4 units of Blackwell; weight-only through Marlin elsewhere; {_MOE_BACKEND}"),
        Scheme("NVFP4A16", "NVFP4 weights, BF16 activations", 4, 16, 1, 1, True, False,
               ("rtn", "mse", "gptq", "gptq-mse", "awq"), 4.0,
               f"Marlin on Ampere and later; same bytes as NVFP4 and no calibration; {_MOE_BACKEND}"),
        Scheme("FP8_DYNAMIC", "FP8, one scale a row", 8, 0, 1, 2, False, False, ("rtn",), 14.0,
               "native from Ada on (sm_89)"),
        Scheme("FP8_BLOCK", "FP8, one scale for 128 x 128", 8, 128, 128, 2, False, False, ("rtn",), 14.0,
               "native from Hopper on"),
        Scheme("W4A16", "INT4 weights in groups of 128", 4, 128, 1, 2, True, False,
               ("rtn", "mse", "gptq", "gptq-mse", "awq"), 6.0, "Marlin on Ampere and later"),
    )
}  # fmt: skip
ALGORITHMS = {
    "rtn": "round to nearest, layer by layer, straight from the files",
    "mse": "round to nearest with scales that minimise the squared error",
    "gptq": "GPTQ: each column's error is carried into the columns to come; needs calibration",
    "gptq-mse": "GPTQ over scales that minimise the squared error; needs calibration",
    "awq": "AWQ: channels that matter are scaled up first; needs calibration",
}

MIXES: Mapping[str, Mapping[str, int]] = {"nvidia": {"sound": 3, "picture": 3, "text": 4}}
"""Shares of the samples: NVIDIA's own calibration of Qwen3-Omni has 150 sounds, 150 pictures and 200 texts."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to quantize a model."""

    scheme: str = "NVFP4A16"
    algorithm: str = "rtn"
    parts: tuple[str, ...] = ()
    """Choosable parts; empty: the architecture's default."""
    samples: int = 32
    """Calibration samples, where calibration is needed."""
    group: int = 0
    """Another group width for W4A16 than 128; 0: the scheme's own."""
    mix: str = ""
    """Of MIXES: how many of the samples hold what; empty: as they come."""

    @property
    def needs_data(self) -> bool:
        return SCHEMES[self.scheme].calibrated_activations or self.needs_model

    @property
    def needs_model(self) -> bool:
        """Whether the layers must run one after the other, rather than being read from the files."""
        return self.algorithm not in ("rtn", "mse")


RECIPES: Mapping[str, tuple[Recipe, str]] = {
    "weight-only": (Recipe("NVFP4A16"), "No calibration; the size of NVFP4 at better quality. The default."),
    "plan": (
        Recipe("NVFP4", samples=20),
        "Targets Linear, NVFP4, 20 samples, saved compressed. Mended: besides lm_head it also leaves the router, both "
        "towers, the talker and code2wav in BF16, by regexes that hold under vllm-omni's module names.",
    ),
    "weight-only-calibrated": (
        Recipe("NVFP4A16", "gptq-mse"),
        "The size of weight-only at half its loss on a small text model; holds the model in memory and takes hours.",
    ),
    "fp8": (Recipe("FP8_DYNAMIC"), "The safest: nearly free of loss, half the size."),
    "nvidia-mix": (
        Recipe("NVFP4", samples=500, mix="nvidia"),
        "NVFP4 calibrated on 150 sounds, 150 pictures and 200 texts, from a data set of your own.",
    ),
}


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one part under one recipe."""

    part: Part
    quantized: bool
    why: str


def scheme_of(recipe: Recipe) -> Scheme:
    """The recipe's scheme, its group width applied. Raises BadRequest for anything unknown or impossible."""
    scheme = SCHEMES.get(recipe.scheme)
    if scheme is None:
        raise BadRequest(f"There is no scheme {recipe.scheme}; choose one of {', '.join(SCHEMES)}.")
    if recipe.algorithm not in scheme.algorithms:
        known = ", ".join(scheme.algorithms)
        raise BadRequest(f"{scheme.name} cannot be made by {recipe.algorithm!r}; choose one of {known}.")
    if recipe.mix and recipe.mix not in MIXES:
        raise BadRequest(f"There is no calibration mix {recipe.mix}; choose one of {', '.join(MIXES)}.")
    if not recipe.group:
        return scheme
    if scheme.name != "W4A16" or recipe.group not in (32, 64, 128):
        raise BadRequest("Only W4A16 takes another group width, and it must be 32, 64 or 128.")
    return replace(scheme, group=recipe.group)


def decide(parts: Iterable[Part], recipe: Recipe) -> list[Decision]:
    """The table's row of one recipe: every part, what happens to it, and why."""
    known = tuple(parts)
    chosen = chosen_parts(known, recipe)
    label = scheme_of(recipe).label
    return [
        Decision(part, part.name in chosen, f"{label}: {part.why}" if part.name in chosen else _kept(part))
        for part in known
    ]


def _kept(part: Part) -> str:
    return f"not chosen: {part.why}" if part.choosable else part.why


def chosen_parts(parts: Iterable[Part], recipe: Recipe) -> set[str]:
    """Names of the parts that the recipe quantizes. Raises BadRequest for one that does not exist or must stay BF16."""
    known = {part.name: part for part in parts}
    for name in recipe.parts:
        if name not in known:
            choices = ", ".join(n for n, part in known.items() if part.choosable)
            raise BadRequest(f"This model has no part {name!r}; choose from {choices}.")
        if not known[name].choosable:
            raise BadRequest(f"{known[name].label} stays BF16: {known[name].why}.")
    if recipe.parts:
        return set(recipe.parts)
    return {n for n in DEFAULT_OMNI_PARTS if n in known} or {n for n, part in known.items() if part.choosable}


def part_of(parts: tuple[Part, ...], tensor: str) -> Part | None:
    """The part that owns a tensor, None where no part knows it."""
    found = _any_part(parts).match(tensor)
    return next(part for part in parts if part.name == found.lastgroup) if found else None


@cache
def _any_part(parts: tuple[Part, ...]) -> re.Pattern[str]:
    """One pattern for all parts, since a model has 28 000 tensors: the name of its last group is the part's."""
    return re.compile("|".join(f"(?P<{part.name}>{part.pattern})" for part in parts))


def fused_with(tensor: str) -> str:
    """A key that all weights share which engines fuse into one layer, and which must therefore be treated alike.

    vLLM builds q, k and v as one layer, and gate and up as one, with one NVFP4 global scale each.
    """
    return re.sub(r"\.(?:(q|k|v)|(gate|up))_proj\.weight$", lambda m: ".qkv" if m[1] else ".gate_up", tensor)


def bf16_bytes(shape: tuple[int, ...]) -> int:
    return math.prod(shape) * _BF16_BYTES
