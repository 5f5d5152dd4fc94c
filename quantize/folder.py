"""The output folder: everything beside the weights, and how it comes to its name only when it is whole."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from quantize.checkpoint import INDEX, MODELOPT, Checkpoint, without_quantizer
from quantize.errors import BadRequest, JobStopped
from quantize.plan import Plan, ignore_rules

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme

_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"}
OURS = {"config.json", INDEX, "recipe.yaml", "README.md", "verification.json", "verification.md", MODELOPT}
"""What a result has of its own beside its weights."""
_GROWING = ".growing"
"""In a folder that we began, which may be removed again; somebody's own may be called so too. Locked by its maker."""
_held: dict[Path, IO[bytes]] = {}
"""The marks of what this process makes; jobs of other folders, and conversions, know of each other by nothing else."""
_NAME_BYTES = 255


def partial(out: Path) -> Path:
    """Where the result grows, beside its name and so on the same disk."""
    return out.with_name(f"{out.name}.partial")


def require_free(source: Path, out: Path) -> None:
    """Raises BadRequest where the name is taken, cannot be written, or would touch the source."""
    if not out.name:
        raise BadRequest(f"{out} is no name for a new folder; name another output folder.")
    if len(os.fsencode(partial(out).name)) > _NAME_BYTES:
        raise BadRequest(f"{out.name[:40]}… is too long for a folder's name; shorten it.")
    if os.path.lexists(out):
        raise BadRequest(f"{out} exists already; name another output folder or remove that one.")
    if source.resolve() in [out.resolve(), *out.resolve().parents]:
        raise BadRequest(f"{out} lies inside the source folder, which is never written to; name another place.")
    if _made_elsewhere(out):
        raise BadRequest(f"{out} is being made by another job; wait for it, or name another output folder.")
    if partial(out).exists() and not _marked(out):
        raise BadRequest(f"{partial(out)} is in the way, where the result would grow; name another output folder.")
    there = next(parent for parent in out.absolute().parents if parent.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise BadRequest(f"Nothing can be written to {there}; name an output folder in another place.")


def begin(source: Path, out: Path) -> Path:
    """An empty folder for the result. Raises what `require_free` raises."""
    require_free(source, out)
    growing = partial(out)
    discard(out)
    growing.mkdir(parents=True)
    _held[out] = mark = (growing / _GROWING).open("wb")
    with suppress(OSError):  # some network disks have no locks
        fcntl.flock(mark, fcntl.LOCK_EX)
    return growing


def discard(out: Path) -> None:
    """Remove a half-written result, and nothing else that has its name."""
    if _marked(out) and not _made_elsewhere(out):
        for path in partial(out).iterdir():
            if path.name != _GROWING:  # the last to go: who is killed in the midst leaves what the next one may remove
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        _let_go(out)
        shutil.rmtree(partial(out))


def _marked(out: Path) -> bool:
    return (partial(out) / _GROWING).exists()


def _made_elsewhere(out: Path) -> bool:
    """Whether another living process fills the folder."""
    if out in _held or not _marked(out):
        return False
    with (partial(out) / _GROWING).open("r+b") as mark:  # NFS gives an exclusive lock to a writer alone
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return isinstance(error, BlockingIOError)
    return False


def _let_go(out: Path) -> None:
    if mark := _held.pop(out, None):
        mark.close()


@contextmanager
def room_told(out: Path) -> Iterator[None]:
    """Raises JobStopped in words where the disk of `out` runs full; safetensors has an error of its own for that."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        full = error.errno == errno.ENOSPC if isinstance(error, OSError) else f"os error {errno.ENOSPC}" in str(error)
        if not full:
            raise
        raise JobStopped(
            f"The disk of {out.parent} ran full while writing; free some space and start again."
        ) from error


def publish(out: Path) -> None:
    """Give the whole result its name. Raises JobStopped where that was taken meanwhile; the result is kept then."""
    growing = partial(out)
    (growing / _GROWING).unlink()  # from here on nothing removes it
    _let_go(out)
    try:
        growing.rename(out)
    except OSError as error:
        raise JobStopped(f"{out} appeared while the job ran, so the whole result is in {growing}.") from error


def complete(plan: Plan, folder: Path, scheme: QuantizationScheme, where: Mapping[str, str]) -> None:
    """Write index, config.json and recipe.yaml; copy tokenizer, processor, template and generation config."""
    section = quantization_config(scheme, plan.source.tensors.keys() - plan.quantized, plan.quantized)
    finish(plan.source, folder, section, where)
    (folder / "recipe.yaml").write_text(recipe(plan))


def finish(source: Checkpoint, folder: Path, section: Mapping[str, Any], where: Mapping[str, str]) -> None:
    """Write index and config.json, and copy what else lies beside the weights.

    section: the quantization_config. where: the file of each tensor.
    """
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes them for their owner alone; a server may be somebody else
    if len(source.files) > 1:
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2))
    config = {**without_quantizer(source.config), "quantization_config": section}
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False))
    for file in source.folder.iterdir():
        if file.is_file() and file.suffix not in _WEIGHTS and file.name not in OURS and not _index(file.name):
            shutil.copyfile(file, folder / file.name)


def _index(name: str) -> bool:
    return name.endswith(".index.json")


def quantization_config(scheme: QuantizationScheme, kept: Iterable[str], quantized: Iterable[str]) -> dict[str, Any]:
    """The top-level section of config.json that compressed-tensors and vLLM read.

    kept, quantized: names of the original's tensors.
    """
    from compressed_tensors import __version__
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        format=scheme.format,
        ignore=ignore_rules(kept, quantized),
        quantization_status=QuantizationStatus.COMPRESSED,
    )
    found: dict[str, Any] = json.loads(config.model_dump_json())
    return {"version": __version__, "quant_method": "compressed-tensors", "transform_config": {}, **found}


def recipe(plan: Plan) -> str:
    """recipe.yaml: the plan in llm-compressor's own form."""
    import yaml

    recipe = plan.recipe
    ignore = ignore_rules(plan.source.tensors.keys() - plan.quantized, plan.quantized)
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
