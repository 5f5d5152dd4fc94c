"""The output folder: everything beside the weights, and how it comes to its name only when it is whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.checkpoint import INDEX
from quantize.errors import BadRequest
from quantize.plan import Plan, ignore_rules

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme

_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"}
_OURS = {"config.json", INDEX, "recipe.yaml", "README.md", "verification.json"}


def partial(out: Path) -> Path:
    """Where the result grows, beside its name and so on the same disk."""
    return out.with_name(f"{out.name}.partial")


def require_free(source: Path, out: Path) -> None:
    """Raises BadRequest where the name is taken, cannot be written, or would touch the source."""
    if out.exists():
        raise BadRequest(f"{out} exists already; name another output folder or remove that one.")
    if source.resolve() in [out.resolve(), *out.resolve().parents]:
        raise BadRequest(f"{out} lies inside the source folder, which is never written to; name another place.")
    there = next(parent for parent in out.absolute().parents if parent.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise BadRequest(f"Nothing can be written to {there}; name an output folder in another place.")


def begin(source: Path, out: Path) -> Path:
    """An empty folder for the result. Raises what `require_free` raises."""
    require_free(source, out)
    growing = partial(out)
    discard(out)
    growing.mkdir(parents=True)
    return growing


def discard(out: Path) -> None:
    """Remove a half-written result."""
    if partial(out).exists():
        shutil.rmtree(partial(out))


def publish(out: Path) -> None:
    """Give the whole result its name."""
    partial(out).rename(out)


def complete(plan: Plan, folder: Path, scheme: QuantizationScheme, where: Mapping[str, str]) -> None:
    """Write index, config.json and recipe.yaml; copy tokenizer, processor, template and generation config."""
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes them for their owner alone; a server may be somebody else
    if len(plan.source.files) > 1:
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2))
    section = quantization_config(plan, scheme)
    config = {**plan.source.config, "quantization_config": section}
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False))
    (folder / "recipe.yaml").write_text(_recipe(plan, section["ignore"]))
    for file in plan.source.folder.iterdir():
        if file.is_file() and file.suffix not in _WEIGHTS and file.name not in _OURS and not _index(file.name):
            shutil.copyfile(file, folder / file.name)


def _index(name: str) -> bool:
    return name.endswith(".index.json")


def quantization_config(plan: Plan, scheme: QuantizationScheme) -> dict[str, Any]:
    """The top-level section of config.json that compressed-tensors and vLLM read."""
    from compressed_tensors import __version__
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

    kept = plan.source.tensors.keys() - plan.quantized
    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        format=scheme.format,
        ignore=ignore_rules(kept, plan.quantized),
        quantization_status=QuantizationStatus.COMPRESSED,
    )
    found: dict[str, Any] = json.loads(config.model_dump_json())
    return {"version": __version__, "quant_method": "compressed-tensors", "transform_config": {}, **found}


def _recipe(plan: Plan, ignore: list[str]) -> str:
    """The recipe in llm-compressor's own form."""
    import yaml

    recipe = plan.recipe
    modifier = "GPTQModifier" if recipe.algorithm.startswith("gptq") else "QuantizationModifier"
    settings: dict[str, Any] = {"targets": ["Linear"], "ignore": ignore, "scheme": plan.scheme.name}
    if recipe.algorithm in ("mse", "gptq-mse"):
        settings["weight_observer"] = "memoryless_mse"
    if recipe.group:
        weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": recipe.group}
        del settings["scheme"], settings["targets"]
        settings["config_groups"] = {"group_0": {"targets": ["Linear"], "weights": weights}}
    modifiers = {"AWQModifier": {"duo_scaling": True}} if recipe.algorithm == "awq" else {}
    text: str = yaml.safe_dump(
        {"default_stage": {"default_modifiers": {**modifiers, modifier: settings}}}, sort_keys=False
    )
    return text
