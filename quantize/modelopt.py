"""ModelOpt's checkpoints: what they say of themselves, how much of each part they cover, and who can serve them.

Layout of a layer in ModelOpt's "unified Hugging Face checkpoint" (NVIDIA/Model-Optimizer,
docs/source/deployment/3_unified_hf.rst), as vLLM 0.30 reads it (model_executor/layers/quantization/modelopt.py):

    NVFP4   weight U8 [out, in/2], the even column in the low nibble; weight_scale F8_E4M3 [out, in/16];
            weight_scale_2 F32 scalar = amax / 2688; input_scale F32 scalar, likewise of the input
    FP8     weight F8_E4M3 [out, in]; weight_scale F32 scalar; input_scale F32 scalar

The description is `hf_quant_config.json` ({"producer", "quantization": {"quant_algo", "kv_cache_quant_algo",
"group_size", "exclude_modules"}}), or a quantization_config of config.json with quant_method "modelopt", where
`ignore` stands for exclude_modules (modelopt/torch/export/convert_hf_config.py). vLLM takes the latter first.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from quantize import checkpoint, formats
from quantize.checkpoint import MODELOPT, Checkpoint
from quantize.errors import ModelUnusable
from quantize.formats import Layer
from quantize.plan import module
from quantize.schemes import part_of
from quantize.vllm_names import built_linear, outer_name

ALGORITHMS = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4", "W4A16_NVFP4", "MXFP8", "MIXED_PRECISION")
"""What vLLM 0.30 takes."""
NVFP4 = ("NVFP4", "W4A16_NVFP4")
_SERVED_PARTS = {"thinker_attention", "thinker_experts"}
"""vllm-omni 0.30's deploy file: its ModelOpt checkpoints quantize the thinker only."""
_TENSORS = ("weight", "weight_scale", "weight_scale_2", "input_scale", "k_scale", "v_scale")
"""Of an NVFP4 layer, all of which `convert` knows; AWQ and SVDQuant have more, and another layer without them."""
_REQUIRED = ("group_size", "kv_cache_quant_algo", "exclude_modules")
"""vLLM 0.30 does not start from an hf_quant_config.json of NVFP4 without each of these."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What a checkpoint says of itself."""

    where: str
    """The file, or the section of config.json."""
    algorithm: str
    """NVFP4, FP8, ..., upper case; empty where it does not say."""
    kv_cache: str
    """FP8 or empty."""
    exclude: tuple[str, ...]
    """Modules left in BF16: names and wildcards."""
    producer: str
    lacking: tuple[str, ...] = ()
    """Fields that vLLM requires and this does not have."""

    def excludes(self, name: str) -> bool:
        """Whether vLLM builds this module unquantized: by name, by wildcard, or as part of a name."""
        own = outer_name(name)
        patterns = [outer_name(pattern) for pattern in self.exclude]
        return any(pattern == own or pattern in own or fnmatch(own, pattern) for pattern in patterns)


@dataclass(frozen=True, slots=True)
class Coverage:
    """Of one part of a model. Counts are of weights, scales left out."""

    part: str
    label: str
    weights: int
    quantized: int
    kinds: tuple[str, ...]
    """nvfp4, fp8, int4; the commonest first."""


@dataclass(frozen=True, slots=True)
class Description:
    quantizer: str
    """modelopt, compressed-tensors, ...; empty for a model that is not quantized."""
    declared: Declared | None
    """Where the quantizer is ModelOpt."""
    parts: tuple[Coverage, ...]
    obstacles: tuple[str, ...]
    """What keeps vllm-omni 0.30 from serving a ModelOpt checkpoint, one sentence each; scales are read by `verify`."""
    unconvertible: str
    """What keeps `convert` from taking it, in a sentence; empty where it can."""

    @property
    def weights(self) -> int:
        return sum(part.weights for part in self.parts)

    @property
    def covered(self) -> float:
        """Share of the weights that is quantized, 0 to 1."""
        return sum(part.quantized for part in self.parts) / max(self.weights, 1)

    def as_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "covered": self.covered, "servable": not self.obstacles, **asdict(self)}

    def table(self) -> str:
        rows = [
            f"| {part.label} | {part.weights / 1e6:,.1f} M | {part.quantized / part.weights:.1%} "
            f"| {', '.join(part.kinds)} |"
            for part in self.parts
        ]
        said = f"{self.quantizer or 'not quantized'}: {self.covered:.1%} of {self.weights / 1e9:.2f} B weights"
        head = [said, "", "| part | weights | quantized | as |", "| --- | --- | --- | --- |"]
        return "\n".join([*head, *rows, "", *(f"- {obstacle}" for obstacle in self.obstacles)])


def declared(found: Checkpoint) -> Declared | None:
    """None for a checkpoint that ModelOpt did not make."""
    for where, section in checkpoint.quantizer_sections(found.config).items():
        if str(section.get("quant_method", "")).startswith("modelopt"):
            return _of_config(where, section)
    path = found.folder / MODELOPT
    return _of_file(path) if path.is_file() else None


def describe(folder: Path) -> Description:
    """What a model folder holds, by headers alone. Raises ModelUnusable."""
    found = checkpoint.read(folder)
    said = declared(found)
    sections = checkpoint.quantizer_sections(found.config)
    other = next((str(section.get("quant_method", "unknown")) for section in sections.values()), "")
    layers = formats.layers(found.tensors)
    obstacles = tuple(_obstacles(found, said, layers)) if said else ()
    coverage, why = tuple(_coverage(found, layers)), unconvertible(found, said, layers)
    return Description("modelopt" if said else other, said, coverage, obstacles, why)


def unconvertible(found: Checkpoint, said: Declared | None, layers: Mapping[str, Layer]) -> str:
    """Why `convert` does not take it, in a sentence; empty where it does."""
    source = found.folder
    if said is None:
        return f"{source} was not made by ModelOpt; only its NVFP4 checkpoints are converted."
    if not layers or any(layer.kind != "nvfp4" for layer in layers.values()):
        other = next((layer for layer in layers.values() if layer.kind != "nvfp4"), None)
        holds = f"{other.kind.upper()} ({other.name})" if other else "nothing (no layer is quantized)"
        return f"{source} holds {holds}, and only NVFP4 can be converted without loss; quantize the BF16 model instead."
    if said.kv_cache not in ("", "FP8"):
        return f"{source} has a KV cache in {said.kv_cache}, which compressed-tensors cannot describe."
    if len({"input_scale" in layer.tensors for layer in layers.values()}) > 1:
        return f"Some layers of {source} have an input_scale and some have none; calibrate it again."
    every = (pair for layer in layers.values() for pair in layer.tensors.items())
    if more := next((tensor.name for last, tensor in every if last not in _TENSORS), None):
        return f"{source} has {more}, for which compressed-tensors has no place; quantize the BF16 model instead."
    return ""


def _of_config(where: str, section: Mapping[str, Any]) -> Declared:
    inner = section.get("quantization")
    if isinstance(inner, Mapping):
        return _of_quantization(where, inner, section.get("producer"))
    cache = section.get("kv_cache_scheme")
    eight = isinstance(cache, Mapping) and cache.get("num_bits") == 8
    return Declared(
        where, str(section.get("quant_algo") or "").upper(), "FP8" if eight or cache == "FP8" else "",
        _strings(section.get("ignore")), _producer(section.get("producer")),
    )  # fmt: skip


def _of_file(path: Path) -> Declared:
    try:
        held = json.loads(path.read_text())
        return _of_quantization(path.name, held["quantization"], held.get("producer"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelUnusable(f"{path} cannot be read as ModelOpt's description; download that file again.") from error


def _of_quantization(where: str, said: Mapping[str, Any], producer: object) -> Declared:
    algorithm = str(said.get("quant_algo") or "").upper()
    lacking = tuple(name for name in _REQUIRED if algorithm in NVFP4 and name not in said)
    cache = str(said.get("kv_cache_quant_algo") or "").upper()
    return Declared(where, algorithm, cache, _strings(said.get("exclude_modules")), _producer(producer), lacking)


def _strings(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _producer(value: object) -> str:
    held = value if isinstance(value, Mapping) else {}
    return f"{held.get('name', '')} {held.get('version', '')}".strip()


def _coverage(found: Checkpoint, layers: Mapping[str, Layer]) -> Iterator[Coverage]:
    weights: Counter[str] = Counter()
    quantized: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for name, layer in layers.items():
        rows, columns = layer.shape
        part = _part(found, f"{name}.weight")
        weights[part] += rows * columns
        quantized[part] += rows * columns
        kinds[part][layer.kind] += 1
    of_layers = {tensor.name for layer in layers.values() for tensor in layer.tensors.values()}
    for tensor in found.tensors.values():
        if tensor.name not in of_layers:
            weights[_part(found, tensor.name)] += tensor.count
    for part, label in _labels(found).items():
        if weights[part]:
            commonest = tuple(kind for kind, _ in kinds[part].most_common())
            yield Coverage(part, label, weights[part], quantized[part], commonest)


def _labels(found: Checkpoint) -> dict[str, str]:
    return {part.name: part.label for part in found.parts} | {"unknown": "Unknown"}


def _part(found: Checkpoint, name: str) -> str:
    part = part_of(found.parts, name)
    return part.name if part else "unknown"


def _obstacles(found: Checkpoint, said: Declared, layers: Mapping[str, Layer]) -> Iterator[str]:
    if not found.is_omni:
        yield f"vLLM-Omni serves {checkpoint.OMNI}, and this is a {found.architecture}; plain vLLM may serve it."
        return
    if said.algorithm not in ALGORITHMS:
        yield f"{said.where} names no algorithm that vLLM 0.30 knows ({said.algorithm or 'nothing'})."
    if said.lacking:
        yield f"{said.where} has no {', '.join(said.lacking)}, without which vLLM 0.30 does not start; add them."
    parts = {_part(found, f"{name}.weight") for name in layers} - _SERVED_PARTS
    if beyond := [label for part, label in _labels(found).items() if part in parts]:
        yield (
            "vLLM-Omni 0.30 serves ModelOpt checkpoints that quantize the thinker's language model only, and this one "
            f"also quantizes: {', '.join(beyond)}; quantize again without."
        )
    if wrong := misbuilt(found, said, layers):
        yield (
            f"The excluded modules of {said.where} do not fit what is stored: vLLM would build {len(wrong)} layers "
            f"otherwise, {wrong[0]} for one; mend that list."
        )


def misbuilt(found: Checkpoint, said: Declared, layers: Mapping[str, Layer]) -> list[str]:
    """Layers of the language model that vLLM would build otherwise than they are stored.

    Qwen3-Omni's towers are left out, since vLLM-Omni 0.30 builds them in BF16 whatever ModelOpt says, and so are the
    stages after its thinker, whose quantization a deploy file clears.
    """
    built = ("thinker.model.", "thinker.lm_head") if found.is_omni else ("",)
    kept = {module(tensor.name) for tensor in found.tensors.values() if len(tensor.shape) == 2} - layers.keys()
    bare = [name for name in kept if name.startswith(built) and built_linear(name) and not said.excludes(name)]
    return sorted(bare + [name for name in layers if said.excludes(name)])
