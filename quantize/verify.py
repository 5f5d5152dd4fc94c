"""Is a quantized checkpoint what it claims to be? Everything that can be told from the files, without running them.

Works on anybody's checkpoint. With the source beside it, every tensor is accounted for, what must not change is
compared bit by bit, and each layer's weights are compared with the original's.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize import checkpoint, formats
from quantize.checkpoint import Checkpoint, Tensor
from quantize.errors import VerificationFailed
from quantize.formats import ERROR_LIMITS, Layer
from quantize.plan import module
from quantize.progress import Tell, silent
from quantize.schemes import fused_with, part_of

if TYPE_CHECKING:
    import torch

_SHOWN = 10
_MAPPED_FILES = 2
_NORM = re.compile(r"\.(input|post_attention)_layernorm\.weight$")
_NORM_READER = re.compile(r"(.*\.layers\.\d+)\.mlp\.(gate|shared_expert_gate)\.weight$")
_SMOOTHING_ERROR = 0.01
"""AWQ moves scale from a norm into all that read it, the router too: their product must stay, but for rounding."""
_SCALE_BOUNDS = {"input_global_scale": (1e-4, 1e10), "weight_global_scale": (1e-2, 1e12)}
"""2688 / amax of any weight or activation that a BF16 model really has. Uninitialised memory rarely keeps to it."""
_SIDE_FILES = {".json", ".jinja", ".txt", ".model"}
_OUTER_NAMES = (
    ("thinker.lm_head", "thinker.language_model.lm_head"),
    ("thinker.model", "thinker.language_model.model"),
    ("talker.model", "talker.language_model.model"),
)
"""How vllm-omni 0.30 names the modules of a checkpoint's tensors."""


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    passed: bool
    detail: str
    """What was found, in one sentence."""
    offenders: tuple[str, ...] = ()
    """The first of them."""


@dataclass(frozen=True, slots=True)
class LayerError:
    layer: str
    kind: str
    relative: float
    """Frobenius norm of the difference over that of the original weights."""


@dataclass(frozen=True, slots=True)
class Report:
    folder: str
    source: str
    checks: tuple[Check, ...]
    worst: tuple[LayerError, ...] = ()
    mean_error: Mapping[str, float] = field(default_factory=dict)
    """Mean relative weight error by part."""
    quality: Mapping[str, float] = field(default_factory=dict)
    """Perplexity, KL and agreement, where they were measured."""

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, **asdict(self)}

    def table(self) -> str:
        """For people, in Markdown."""
        rows = [f"| {'ok' if c.passed else 'FAILED'} | {c.name} | {c.detail} |" for c in self.checks]
        text = "\n".join(["| | check | found |", "| --- | --- | --- |", *rows])
        if self.worst:
            worst = [f"| {e.layer} | {e.kind} | {e.relative:.4f} |" for e in self.worst]
            text += "\n\n" + "\n".join(["| worst layers | kind | relative error |", "| --- | --- | --- |", *worst])
        if self.quality:
            text += "\n\n" + "\n".join(
                [
                    "| quality | |",
                    "| --- | --- |",
                    *(f"| {name} | {value:.4f} |" for name, value in self.quality.items()),
                ]
            )
        return text + "\n"

    def require(self) -> None:
        """Raises VerificationFailed with the failed checks."""
        failed = [check for check in self.checks if not check.passed]
        if failed:
            raise VerificationFailed(" ".join(f"{check.name}: {check.detail}" for check in failed))


class Weights:
    """Tensors of a checkpoint, read when asked for. A few files stay mapped at a time, so ask in the files' order."""

    def __init__(self, found: Checkpoint) -> None:
        self._found = found
        self._open: dict[str, Any] = {}

    def get(self, tensor: Tensor) -> torch.Tensor:
        from safetensors import safe_open

        if tensor.file not in self._open:
            if len(self._open) >= _MAPPED_FILES:
                self._open.pop(next(iter(self._open)))
            self._open[tensor.file] = safe_open(self._found.folder / tensor.file, "pt")
        value: torch.Tensor = self._open[tensor.file].get_tensor(tensor.name)
        return value

    def layer(self, layer: Layer) -> torch.Tensor:
        """F32 [out, in]."""
        return formats.dequantize(layer, {last: self.get(tensor) for last, tensor in layer.tensors.items()})


def verify(folder: Path, source: Path | None = None, tell: Tell = silent) -> Report:
    """Raises ModelUnusable where a folder cannot be read at all; any other fault is in the report."""
    result = checkpoint.read(folder)
    found = formats.layers(result.tensors)
    weights = Weights(result)
    checks = [
        _something(found), _shapes(found), _scales(found, weights), _fused(found, weights), _protected(result, found),
        _alike(result, found), _names(result, found),
    ]  # fmt: skip
    if source is None:
        return Report(str(folder), "", tuple(checks))
    original = checkpoint.read(source)
    smoothed = _smoothed(folder)
    checks += [_accounted(result, original, found), _side_files(result, original)]
    before = Weights(original)
    checks.append(_identical(result, original, found, weights, before, smoothed))
    errors = () if smoothed else tuple(_errors(original, found, weights, before, tell))
    checks.append(_precise(errors, smoothed, _limit_factor(folder)))
    worst = sorted(errors, key=lambda error: -_or_infinite(error.relative))[:_SHOWN]
    return Report(str(folder), str(source), tuple(checks), tuple(worst), _mean_by_part(original, errors))


def _check(name: str, offenders: Iterable[str], good: str, bad: str) -> Check:
    found = sorted(set(offenders))
    detail = f"{len(found)} {bad}, {found[0]} for one" if found else good
    return Check(name, not found, detail, tuple(found[:_SHOWN]))


def _something(found: Mapping[str, Layer]) -> Check:
    kinds = ", ".join(sorted({layer.kind for layer in found.values()}))
    return Check(
        "quantized layers", bool(found), f"{len(found)} ({kinds})" if found else "none: this is no quantized model"
    )


def _shapes(found: Mapping[str, Layer]) -> Check:
    problems = [problem for layer in found.values() if (problem := layer.problem())]
    return _check("packed shapes", problems, f"{len(found)} layers have all their tensors in the right shape", "do not")


def _scales(found: Mapping[str, Layer], weights: Weights) -> Check:
    scales = [tensor for layer in found.values() for tensor in layer.scales]
    bad = [tensor.name for tensor in scales if not _sound(tensor, weights.get(tensor))]
    return _check(
        "scales", bad, f"{len(scales)} are finite, positive and plausible", "are not finite and positive, or absurd"
    )


def _sound(tensor: Tensor, value: torch.Tensor) -> bool:
    low, high = _SCALE_BOUNDS.get(tensor.name.rpartition(".")[2], (0.0, 1e12))
    value = value.float()
    return bool(value.isfinite().all() and (value > low).all() and (value < high).all())


def _fused(found: Mapping[str, Layer], weights: Weights) -> Check:
    """Engines fuse q, k and v, and gate and up, under one global scale and one input scale."""
    by_key: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for name, layer in found.items():
        for last in ("weight_global_scale", "input_global_scale"):
            if last in layer.tensors and layer.tensors[last].count == 1:
                by_key[fused_with(f"{name}.weight"), last][name] = float(weights.get(layer.tensors[last]))
    odd = [f"{min(group)}.{last}" for (_, last), group in by_key.items() if len(set(group.values())) > 1]
    return _check("fused layers", odd, "q/k/v and gate/up share their global scales", "differ within a fused layer")


def _protected(result: Checkpoint, found: Mapping[str, Layer]) -> Check:
    bad = []
    for name in found:
        part = part_of(result.parts, f"{name}.weight")
        if part is None or not part.choosable:
            bad.append(f"{name} ({part.label if part else 'unknown part'})")
    return _check(
        "parts kept in BF16", bad, "routers, heads, towers and codec are not quantized", "layers must not be quantized"
    )


def _alike(result: Checkpoint, found: Mapping[str, Layer]) -> Check:
    """Fused layers, and all experts of a layer, must be of one kind."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for name in formats.without_scales(result.tensors):
        if name.endswith("_proj.weight"):
            layer = found.get(module(name))
            key = re.sub(r"(\.mlp\.experts)\..*", r"\1", fused_with(name))
            kinds[key].add(layer.kind if layer else "BF16")
    mixed = [key for key, kind in kinds.items() if len(kind) > 1]
    return _check("one kind a layer", mixed, "experts and fused layers are each of one kind", "mix quantized and not")


def _names(result: Checkpoint, found: Mapping[str, Layer]) -> Check:
    """Whether vLLM would build exactly the stored layers as quantized, by its own module names."""
    section = result.config.get("quantization_config")
    if not isinstance(section, Mapping):
        return Check("names for vLLM", False, "config.json has no quantization_config at its top level")
    if section.get("quant_method") != "compressed-tensors":
        return Check("names for vLLM", True, f"not checked: written by {section.get('quant_method', 'another tool')}")
    ignored = _ignoring([str(rule) for rule in section.get("ignore") or []])
    wrong = [name for name in found if ignored(name)]
    kept = {
        module(name) for name, tensor in result.tensors.items() if name.endswith(".weight") and len(tensor.shape) == 2
    }
    wrong += [name for name in kept - found.keys() if _built_linear(name) and not ignored(name)]
    if result.is_omni:
        wrong += [name for name in result.tensors if not name.startswith(("thinker.", "talker.", "code2wav."))]
    return _check("names for vLLM", wrong, "`ignore` matches exactly the BF16 layers under vllm-omni's names",
                  "would be built otherwise than stored")  # fmt: skip


def _ignoring(rules: list[str]) -> Callable[[str], bool]:
    regexes = [re.compile(rule[3:]) for rule in rules if rule.startswith("re:")]
    plain = {outer_name(rule) for rule in rules if not rule.startswith("re:")}
    return lambda name: outer_name(name) in plain or any(regex.match(outer_name(name)) for regex in regexes)


def outer_name(name: str) -> str:
    """A module's name as vllm-omni has it."""
    for ours, theirs in _OUTER_NAMES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _built_linear(name: str) -> bool:
    return not re.search(r"norm|embed|rotary", name.rpartition(".")[2])


def _smoothed(folder: Path) -> bool:
    """Whether AWQ moved scale from the norms into the weights, so that neither can be compared alone."""
    recipe = folder / "recipe.yaml"
    return recipe.is_file() and "AWQModifier" in recipe.read_text()


def _limit_factor(folder: Path) -> float:
    """GPTQ gives up nearness of single weights for nearness of outputs."""
    recipe = folder / "recipe.yaml"
    return 2.0 if recipe.is_file() and "GPTQModifier" in recipe.read_text() else 1.0


def _accounted(result: Checkpoint, original: Checkpoint, found: Mapping[str, Layer]) -> Check:
    names = formats.without_scales(result.tensors)
    missing = [f"{name} is missing" for name in original.tensors.keys() - names]
    extra = [f"{name} is not in the original" for name in names - original.tensors.keys()]
    reshaped = [
        f"{layer.name} is {layer.shape}, not {original.tensors[f'{layer.name}.weight'].shape}"
        for layer in found.values()
        if f"{layer.name}.weight" in original.tensors and layer.shape != original.tensors[f"{layer.name}.weight"].shape
    ]
    copied = len(original.tensors) - len(found)
    return _check(
        "every tensor", missing + extra + reshaped, f"{len(found)} quantized, {copied} copied, none missing", "wrong"
    )


def _side_files(result: Checkpoint, original: Checkpoint) -> Check:
    bad = [
        file.name
        for file in original.folder.iterdir()
        if file.suffix in _SIDE_FILES and "index" not in file.name and not (result.folder / file.name).exists()
    ]
    config = {name: value for name, value in result.config.items() if name != "quantization_config"}
    if config != {name: value for name, value in original.config.items() if name != "quantization_config"}:
        bad.append("config.json differs from the original beyond quantization_config")
    return _check(
        "side files", bad, "tokenizer, processor and template are there, config.json is the original's", "wrong"
    )


def _identical(
    result: Checkpoint,
    original: Checkpoint,
    found: Mapping[str, Layer],
    after: Weights,
    before: Weights,
    smoothed: bool,
) -> Check:
    import torch

    changed = []
    same = result.tensors.keys() & original.tensors.keys() - {f"{name}.weight" for name in found}
    for name in sorted(same, key=lambda name: (original.tensors[name].file, name)):
        if smoothed and _NORM.search(name):
            continue
        one, other = after.get(result.tensors[name]), before.get(original.tensors[name])
        if smoothed and (reader := _NORM_READER.match(name)):
            norm = f"{reader[1]}.post_attention_layernorm.weight"
            one = one.float() * after.get(result.tensors[norm]).float()
            other = other.float() * before.get(original.tensors[norm]).float()
            if (one - other).norm() > _SMOOTHING_ERROR * other.norm():
                changed.append(name)
            continue
        if one.dtype != other.dtype or not torch.equal(_bits(one), _bits(other)):
            changed.append(name)
    return _check(
        "untouched parts", changed, f"{len(same)} tensors are bit-identical to the original", "differ from it"
    )


def _bits(value: torch.Tensor) -> torch.Tensor:
    import torch

    return value.contiguous().reshape(-1).view(torch.uint8)


def _errors(
    original: Checkpoint, found: Mapping[str, Layer], after: Weights, before: Weights, tell: Tell
) -> Iterator[LayerError]:
    for number, layer in enumerate(found.values()):
        source = original.tensors.get(f"{layer.name}.weight")
        if source is None or layer.problem() or layer.shape != source.shape:
            continue
        exact = before.get(source).float()
        error = (after.layer(layer) - exact).norm() / exact.norm().clamp_min(1e-30)
        tell("verify", number + 1, len(found), layer.name)
        yield LayerError(layer.name, layer.kind, float(error))


def _precise(errors: tuple[LayerError, ...], smoothed: bool, factor: float) -> Check:
    if smoothed:
        return Check("weights near the original", True, "not compared: AWQ rescaled them; the outputs are what counts")
    bad = [e for e in errors if _or_infinite(e.relative) > ERROR_LIMITS[e.kind] * factor]
    mean = sum(_or_infinite(e.relative) for e in errors) / max(len(errors), 1)
    return _check("weights near the original", [f"{e.layer} ({e.relative:.3f})" for e in bad],
                  f"mean relative error {mean:.4f} over {len(errors)} layers", "are too far from it")  # fmt: skip


def _or_infinite(value: float) -> float:
    return value if value == value else float("inf")


def _mean_by_part(original: Checkpoint, errors: tuple[LayerError, ...]) -> dict[str, float]:
    by_part: dict[str, list[float]] = defaultdict(list)
    for error in errors:
        part = part_of(original.parts, f"{error.layer}.weight")
        by_part[part.name if part else "unknown"].append(error.relative)
    return {part: sum(values) / len(values) for part, values in by_part.items()}


def write(report: Report, folder: Path) -> None:
    """verification.json and verification.md."""
    (folder / "verification.json").write_text(json.dumps(report.as_dict(), indent=2))
    (folder / "verification.md").write_text(report.table())
