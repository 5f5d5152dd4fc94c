"""The model card of a result: what it is, how it was made, how good it is, and how to serve it."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from quantize import folder, samples
from quantize.checkpoint import Checkpoint
from quantize.estimate import GB, Estimate
from quantize.plan import Plan
from quantize.schemes import ALGORITHMS
from quantize.verify import Report

_MADE_WITH = ("llmcompressor", "compressed-tensors", "transformers", "torch")
_SERVER = "vllm 0.30 with vllm-omni 0.30"
_TIMEOUTS = "--stage-init-timeout 1800 --init-timeout 3600"
"""vllm-omni's own are too short for a first start, which compiles."""
_LEFT_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Data:
    """What a recipe was calibrated on."""

    origin: str
    """In words, without paths of this machine."""
    kinds: Mapping[str, int]
    """Samples by what they hold: "text alone", "a picture", "a sound", "a picture and a sound"."""
    skipped: int
    """That could not be read."""

    def sentence(self) -> str:
        kinds = ", ".join(f"{count} with {kind}" for kind, count in self.kinds.items())
        skipped = f"; {self.skipped} more could not be read" if self.skipped else ""
        return f"{sum(self.kinds.values())} samples from {self.origin}: {kinds}{skipped}."


def versions() -> dict[str, str]:
    """Of the packages that made the result, those that are in this interpreter."""
    held = {held.name.lower().replace("_", "-"): held.version for held in metadata.distributions()}
    return {name: held[name] for name in _MADE_WITH if name in held}


def data(plan: Plan, calibration: str) -> Data | None:
    """What the recipe is calibrated on, read as the run reads it; None where it needs nothing."""
    if not plan.recipe.needs_data:
        return None
    given = samples.read(calibration, plan.recipe.samples, plan.source.is_omni, plan.recipe.mix)
    kinds = Counter(_kind(sample) for sample in given.found)
    origin = f"the user's set {Path(calibration).name}" if calibration else "this tool's own small set"
    return Data(origin, dict(kinds.most_common()), len(given.skipped))


def _kind(sample: samples.Sample) -> str:
    held = [name for name, value in (("a picture", sample.image), ("a sound", sample.sound)) if value is not None]
    return " and ".join(held) or "text alone"


def render(
    plan: Plan, size: Estimate, report: Report, given: Data | None = None, made: Mapping[str, str] | None = None
) -> str:
    """README.md of the published folder, with the hub's metadata on top.

    given: the calibration data, None for none. made: versions by package; None: those of this interpreter.
    """
    title = f"{plan.source.name.rsplit('/', 1)[-1]}-{plan.scheme.name}"
    pipeline = "any-to-any" if plan.source.is_omni else "text-generation"
    recipe = folder.recipe(plan)
    blocks = [
        _metadata(plan.source, pipeline, plan.scheme.name, ["llm-compressor"]), f"# {title}", _summary(plan, size),
        _parts(size), _how(plan, recipe, given, versions() if made is None else made), _quality(report),
        _serving(plan, title), _limits(plan, report),
    ]  # fmt: skip
    return "\n\n".join(blocks) + "\n"


def converted(source: Checkpoint, producer: str, report: Report, proof: str) -> str:
    """README.md of a ModelOpt checkpoint that was turned into compressed-tensors."""
    title = f"{source.name.rsplit('/', 1)[-1]}-compressed-tensors"
    pipeline = "any-to-any" if source.is_omni else "text-generation"
    made_by = f"ModelOpt ({producer})" if producer else "ModelOpt"
    text = (
        f"{source.name}, NVFP4 by {made_by}, as compressed-tensors: the same packed weights under other names. {proof}"
    )
    blocks = [_metadata(source, pipeline, "NVFP4", ["modelopt"]), f"# {title}", text, _quality(report),
              "## Serve\n\n" + _commands(title, source.is_omni, True, False)]  # fmt: skip
    return "\n\n".join(blocks) + "\n"


def _metadata(source: Checkpoint, pipeline: str, scheme: str, more: list[str]) -> str:
    from huggingface_hub import ModelCardData

    held = ModelCardData(
        base_model=source.name, base_model_relation="quantized", library_name="vllm", pipeline_tag=pipeline,
        tags=["compressed-tensors", *more, scheme.lower().replace("_", "-"), "vllm"],
    )  # fmt: skip
    return f"---\n{held.to_yaml()}\n---"


def _summary(plan: Plan, size: Estimate) -> str:
    share = size.bytes_after / size.bytes_now
    return (
        f"{plan.source.name} with {plan.scheme.label}. Algorithm: {ALGORITHMS[plan.recipe.algorithm]}. "
        f"{size.parameters / GB:.2f} B parameters; {size.bytes_now / GB:.2f} GB before and "
        f"{size.bytes_after / GB:.2f} GB now ({share:.0%})."
    )


def _parts(size: Estimate) -> str:
    rows = [
        f"| {part.label} | {part.parameters / 1e6:,.1f} M | {part.bytes_now / GB:.3f} GB "
        f"| {part.bytes_after / GB:.3f} GB | {part.why} |"
        for part in size.parts
    ]
    table = "\n".join(["| part | parameters | before | after | |", "| --- | --- | --- | --- | --- |", *rows])
    left = [f"- `{name}` stays BF16: {why}" for name, why in sorted(size.left.items())]
    if len(left) > _LEFT_SHOWN:
        left[_LEFT_SHOWN:] = [f"- and {len(left) - _LEFT_SHOWN} more"]
    return "\n\n".join(["## Parts", table, *(["\n".join(left)] if left else [])])


def _how(plan: Plan, recipe: str, given: Data | None, made: Mapping[str, str]) -> str:
    calibrated = given.sentence() if given else "none; the weights alone decide."
    tools = ", ".join(f"{name} {version}" for name, version in made.items())
    return "\n\n".join([
        "## Recipe", f"`recipe.yaml`, in llm-compressor's form:\n\n```yaml\n{recipe.strip()}\n```",
        f"Calibration data: {calibrated}", f"Made with {tools}.",
    ])  # fmt: skip


def _quality(report: Report) -> str:
    return f"## Verification\n\n{report.table().strip()}"


def _serving(plan: Plan, title: str) -> str:
    chosen = {decision.part.name for decision in plan.decisions if decision.quantized}
    talker = any(name.startswith("talker_") for name in chosen)
    commands = _commands(title, plan.source.is_omni, "moe_backend" in plan.scheme.serving, talker)
    return f"## Serve\n\n{commands}\n\n{plan.scheme.serving}. For {_SERVER}."


def _commands(title: str, omni: bool, explicit_experts: bool, talker: bool) -> str:
    """explicit_experts: whether the format needs another kernel for experts than vllm-omni picks by itself."""
    model = shlex.quote(f"./{title}")
    if not omni:
        return f"```\nvllm serve {model}\n```"
    kernel = {"moe_backend": "auto"} if explicit_experts else {}
    plain = {"hf_overrides": {"quantization_config": None}}
    stages = {"0": kernel, "1": kernel if talker else plain, "2": plain}
    overrides = json.dumps({stage: options for stage, options in stages.items() if options})
    return (
        f"With this app, which plans memory for the GPU at hand:\n\n```\nmake serve MODEL={model}\n```\n\n"
        "Or by itself; stages that are BF16 are told so:\n\n"
        f"```\nvllm serve {model} --omni {_TIMEOUTS} \\\n  --stage-overrides {shlex.quote(overrides)}\n```"
    )


def _limits(plan: Plan, report: Report) -> str:
    found = ["Quantizing loses quality; the figures above say how much of each layer."]
    if not report.quality:
        found.append("Perplexity and agreement with the original were not measured.")
    if plan.source.is_omni and report.speech is None:
        found.append("Nobody listened: speech was not transcribed and compared.")
    if plan.recipe.needs_data:
        found.append("Calibration data that is unlike your own costs quality on yours.")
    return "\n".join(["## Limits", "", *(f"- {line}" for line in found)])
