"""The model card of a result: what it is, how it was made, how good it is, and how to serve it."""

from __future__ import annotations

from quantize.estimate import GB, Estimate
from quantize.plan import Plan
from quantize.schemes import ALGORITHMS
from quantize.verify import Report

_VERSIONS = "llm-compressor 0.14.0.1, compressed-tensors 0.19.0, transformers 5.17.0; served with vllm-omni 0.30"


def render(plan: Plan, size: Estimate, report: Report) -> str:
    """README.md of the published folder, with the hub's metadata on top."""
    base = str(plan.source.config.get("_name_or_path") or "") or plan.source.folder.name
    name = f"{base.rsplit('/', 1)[-1]}-{plan.scheme.name}"
    return "\n".join([*_metadata(plan, base), f"# {name}", "", *_summary(plan, size), *_parts(size), *_recipe(plan),
                      "## Verification", "", report.table(), *_serving(plan, name), *_limits(plan)])  # fmt: skip


def _metadata(plan: Plan, base: str) -> list[str]:
    pipeline = "any-to-any" if plan.source.is_omni else "text-generation"
    tags = ["compressed-tensors", "llm-compressor", plan.scheme.name.lower().replace("_", "-"), "vllm"]
    lines = ["---", f"base_model: {base}", "base_model_relation: quantized", "library_name: vllm"]
    return [*lines, f"pipeline_tag: {pipeline}", "tags:", *(f"- {tag}" for tag in tags), "---", ""]


def _summary(plan: Plan, size: Estimate) -> list[str]:
    return [
        f"{plan.scheme.label}, made by {ALGORITHMS[plan.recipe.algorithm]}. "
        f"{size.parameters / GB:.2f} B parameters, "
        f"{size.bytes_now / GB:.2f} GB before and {size.bytes_after / GB:.2f} GB now.",
        "",
    ]


def _parts(size: Estimate) -> list[str]:
    rows = [
        f"| {part.label} | {part.parameters / 1e6:,.1f} M | {part.bytes_now / GB:.3f} GB "
        f"| {part.bytes_after / GB:.3f} GB | {part.why} |"
        for part in size.parts
    ]
    left = [f"- `{name}` stays BF16: {why}" for name, why in sorted(size.left.items())[:10]]
    return [
        "## Parts",
        "",
        "| part | parameters | before | after | |",
        "| --- | --- | --- | --- | --- |",
        *rows,
        "",
        *left,
    ]


def _recipe(plan: Plan) -> list[str]:
    data = f"{plan.recipe.samples} samples" if plan.recipe.needs_data else "none; the weights alone decide"
    return ["", "## Recipe", "", f"`recipe.yaml` has it in llm-compressor's form. Calibration data: {data}.", ""]


def _serving(plan: Plan, name: str) -> list[str]:
    omni = " --omni" if plan.source.is_omni else ""
    return [
        "## Serve",
        "",
        "```",
        f"vllm serve ./{name}{omni}",
        "```",
        "",
        f"{plan.scheme.serving}. Versions: {_VERSIONS}.",
        "",
    ]


def _limits(plan: Plan) -> list[str]:
    speech = " Speech was not listened to by these checks." if plan.source.is_omni else ""
    return ["## Limits", "", f"Quantizing loses quality; the figures above say how much of each layer.{speech}", ""]
