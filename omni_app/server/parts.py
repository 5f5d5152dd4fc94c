"""The parts of Qwen3-Omni by their tensors' names, how each is stored, and what of that vLLM-Omni cannot load."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from omni_app.server.shards import Tensor

# First match wins. Names as in published checkpoints; vLLM-Omni skips tensors of any other prefix.
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
THINKER = ("attention", "experts", "router", "norms", "embeddings", "lm_head", "audio_tower", "visual")
TALKER = ("talker", "talker_other", "code_predictor")
CODE2WAV = ("code2wav",)
# vLLM-Omni 0.30 builds these with no quantization config.
_KEPT = {
    "audio_tower": "audio tower",
    "visual": "vision tower",
    "lm_head": "thinker's lm_head",
    "router": "thinker's router (mlp.gate)",
    "embeddings": "thinker's embeddings",
    "norms": "thinker's norms",
    "code_predictor": "talker's code predictor",
    "talker_other": "talker's router, projections or codec head",
    "code2wav": "code2wav part",
}
_UNKNOWN = "unknown"
_BUFFER = "buffer"
"""Format of a module that has only counters or offsets."""
FLOATS = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    size: int
    """Bytes on disk, which is what they take on the GPU as well."""
    formats: tuple[str, ...]
    """How its linear layers are quantized (nvfp4, nvfp4a16, mxfp4, fp8, w4a16, ...), or else its float type."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """What config.json says of it."""

    method: str
    """The quantizer's name: compressed-tensors, modelopt, ...; empty for none."""
    nested: bool = False
    """Whether that stands only inside the thinker's own section."""
    bits: int = 4
    """Of packed integer weights."""


Module = dict[str, str]
"""Last name of each of a module's tensors, and its dtype."""


@dataclass(frozen=True, slots=True)
class Contents:
    """All tensors of a folder, by part and module."""

    sizes: Mapping[str, int]
    modules: Mapping[str, Mapping[str, Module]]
    quantization: Quantization

    @classmethod
    def of(cls, tensors: Iterable[Tensor], quantization: Quantization) -> Contents:
        sizes: dict[str, int] = defaultdict(int)
        modules: dict[str, dict[str, Module]] = defaultdict(lambda: defaultdict(dict))
        for tensor in tensors:
            part = next((part for part, pattern in _PARTS if pattern.match(tensor.name)), _UNKNOWN)
            # bitsandbytes hangs weight.absmax and the like below weight.
            owner, _, last = re.sub(r"\.weight\.(?=\w)", ".weight/", tensor.name).rpartition(".")
            sizes[part] += tensor.size
            modules[part][owner][last] = tensor.dtype
        return cls(sizes, modules, quantization)

    @property
    def parts(self) -> dict[str, Part]:
        return {name: Part(name, size, self._formats(name)) for name, size in self.sizes.items() if name != _UNKNOWN}

    def _formats(self, part: str) -> tuple[str, ...]:
        counts = Counter(_format(module, self.quantization.bits) for module in self.modules[part].values())
        quantized = Counter({form: count for form, count in counts.items() if is_quantized(form)})
        return tuple(form for form, _ in (quantized or counts).most_common())

    def problems(self) -> Iterator[str]:
        """What keeps vLLM-Omni 0.30 from loading this, one sentence each."""
        parts = self.parts
        if absent := [name for name in ("attention", "experts", "embeddings", "lm_head") if name not in parts]:
            yield f"The thinker has no {' and no '.join(absent)}: the folder is not whole. Download the model again."
            return
        if _UNKNOWN in self.sizes:
            yield (
                f"Some tensors belong to no part of Qwen3-Omni ({min(self.modules[_UNKNOWN])} for one); their names "
                "must begin with thinker., talker. or code2wav. Export the model again with its original names."
            )
        quantized = {name: part.formats[0] for name, part in parts.items() if is_quantized(part.formats[0])}
        for name in quantized.keys() & _KEPT.keys():
            yield (
                f"The {_KEPT[name]} is quantized ({quantized[name]}), which vLLM-Omni cannot load: "
                "quantize the model again and leave that part in BF16."
            )
        yield from self._mismatch(quantized)
        yield from self._mixed()

    def _mismatch(self, quantized: Mapping[str, str]) -> Iterator[str]:
        """Where config.json and the tensors disagree on how the model is quantized."""
        method = self.quantization.method
        if quantized and not method:
            yield (
                f"The weights are quantized ({next(iter(quantized.values()))}), but config.json has no "
                "quantization_config: export the model again, or copy config.json from where it was quantized."
            )
        elif method and not quantized:
            yield f"config.json says that the model is quantized ({method}), but no weight is; download it again."
        elif self.quantization.nested and method == "compressed-tensors":
            yield "Move quantization_config to the top level of config.json: vLLM reads compressed-tensors only there."
        if "bitsandbytes" in quantized.values():
            yield "vLLM-Omni cannot load bitsandbytes weights; quantize to NVFP4 (compressed-tensors) instead."
        if method == "modelopt" and "talker" in quantized:
            yield "vLLM-Omni takes ModelOpt checkpoints only with a BF16 talker; quantize again without the talker."

    def _mixed(self) -> Iterator[str]:
        """vLLM takes one scheme for all experts of a layer, that of the first."""
        layers: dict[str, set[str]] = defaultdict(set)
        for name, module in self.modules["experts"].items():
            layers[name.partition(".mlp.")[0]].add(_format(module, self.quantization.bits))
        for layer, forms in layers.items():
            if len(forms) > 1:
                yield (
                    f"The experts of {layer} are stored in several formats ({', '.join(sorted(forms))}); "
                    "quantize all experts of a layer in the same way."
                )
                return


def is_quantized(form: str) -> bool:
    return form not in (*FLOATS.values(), _BUFFER)


def _format(module: Module, bits: int) -> str:
    """How one module is stored, by its tensors' names and dtypes."""
    weight = module.get("weight_packed") or module.get("weight") or next(iter(module.values()))
    if any(last.startswith("weight/") for last in module):
        return "bitsandbytes"
    if "qweight" in module:
        return "gptq" if "g_idx" in module else "awq"
    if weight in ("U8", "I8") and module.get("weight_scale") == "F8_E4M3":
        return "nvfp4" if {"input_global_scale", "input_scale"} & module.keys() else "nvfp4a16"
    if "weight_packed" in module:
        return "mxfp4" if weight == "U8" else f"w{bits}a16"
    if weight.startswith("F8"):
        return "fp8"
    return "int8" if module.get("weight") == "I8" else FLOATS.get(weight, _BUFFER)
