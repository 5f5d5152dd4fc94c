"""Plant one fault at a time in a sound checkpoint and verify it: `python plant_faults.py SOURCE OUT`.

Prints for each fault the names of the checks that failed.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from quantize import folder as folders
from quantize import plan, stream, verify
from quantize.checkpoint import read_source
from quantize.schemes import Recipe

Tensors = dict[str, torch.Tensor]
LAYER = "thinker.model.layers.0.mlp.experts.1.up_proj"
OTHER = "thinker.model.layers.0.mlp.experts.2.up_proj"
ROUTER = "thinker.model.layers.0.mlp.gate"
PARTS = ("weight_packed", "weight_scale", "weight_global_scale")


def nothing(tensors: Tensors) -> None:
    """The checkpoint as it is must pass."""


def nan_scale(tensors: Tensors) -> None:
    tensors[f"{LAYER}.weight_scale"].view(torch.uint8)[0, 0] = 0x7F


def zeroed_scale(tensors: Tensors) -> None:
    tensors[f"{LAYER}.weight_scale"].zero_()


def uninitialised_global_scale(tensors: Tensors) -> None:
    tensors[f"{LAYER}.weight_global_scale"].fill_(-1.8e29)


def plausible_global_scale(tensors: Tensors) -> None:
    for kind in ("gate", "up"):
        tensors[f"{LAYER.replace('up_proj', kind)}_proj.weight_global_scale"].fill_(0.76)


def unshared_global_scale(tensors: Tensors) -> None:
    tensors[f"{LAYER}.weight_global_scale"] *= 1.05


def swapped_experts(tensors: Tensors) -> None:
    for part in PARTS:
        one, other = f"{LAYER}.{part}", f"{OTHER}.{part}"
        tensors[one], tensors[other] = tensors[other], tensors[one]


def quantized_router(tensors: Tensors) -> None:
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import preset_name_to_scheme

    scheme = preset_name_to_scheme("NVFP4A16", ["Linear"])
    scheme = scheme.model_copy(update={"format": infer_module_format(torch.nn.Linear, scheme)})
    weight = tensors.pop(f"{ROUTER}.weight")
    tensors |= stream.quantize_group({ROUTER: weight}, scheme)


def missing_tensor(tensors: Tensors) -> None:
    del tensors["talker.model.norm.weight"]


def missing_global_scale(tensors: Tensors) -> None:
    del tensors[f"{LAYER}.weight_global_scale"]


def changed_tower(tensors: Tensors) -> None:
    tensors["thinker.audio_tower.ln_post.weight"][0] += 1


def reshaped_tower(tensors: Tensors) -> None:
    """The same bytes, but no engine takes a convolution's kernel as a matrix."""
    name = "thinker.audio_tower.conv2d1.weight"
    tensors[name] = tensors[name].flatten(1)


def wrong_shape(tensors: Tensors) -> None:
    tensors[f"{LAYER}.weight_scale"] = tensors[f"{LAYER}.weight_scale"][:, :-1].contiguous()


FAULTS: tuple[Callable[[Tensors], None], ...] = (
    nothing, nan_scale, zeroed_scale, uninitialised_global_scale, plausible_global_scale, unshared_global_scale,
    swapped_experts, quantized_router, missing_tensor, missing_global_scale, changed_tower, reshaped_tower,
    wrong_shape,
)  # fmt: skip


def with_fault(quantized: Path, folder: Path, plant: Callable[[Tensors], None]) -> None:
    """A copy of the checkpoint in one file, with the fault in it."""
    tensors = {
        name: value for file in sorted(quantized.glob("*.safetensors")) for name, value in load_file(file).items()
    }
    plant(tensors)
    for file in quantized.iterdir():
        if file.suffix != ".safetensors" and "index" not in file.name:
            shutil.copy(file, folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def plain_ignore(quantized: Path, folder: Path) -> None:
    """The names as llm-compressor's own one-shot run writes them, which miss vllm-omni's."""
    with_fault(quantized, folder, nothing)
    config = json.loads((folder / "config.json").read_text())
    rules = config["quantization_config"]["ignore"]
    config["quantization_config"]["ignore"] = [r for r in rules if "mlp" not in r] + ["thinker.layers.0.mlp.gate"]
    (folder / "config.json").write_text(json.dumps(config))


def cut_tokenizer(quantized: Path, folder: Path) -> None:
    """As a download that broke off leaves it."""
    with_fault(quantized, folder, nothing)
    whole = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(whole[:1000])


def empty_template(quantized: Path, folder: Path) -> None:
    with_fault(quantized, folder, nothing)
    (folder / "chat_template.jinja").write_text("")


def without_shape(tensors: Tensors) -> None:
    """Of a layer in INT4."""
    del tensors[f"{LAYER}.weight_shape"]


def other_shape(tensors: Tensors) -> None:
    tensors[f"{LAYER}.weight_shape"] //= 2


def quantized(source: Path, out: Path, recipe: Recipe) -> Path:
    """As a job writes it, before it verifies and measures."""
    made = plan.make(read_source(source), recipe)
    growing, scheme = folders.begin(source, out), stream.scheme_for(made)
    folders.complete(made, growing, scheme, stream.write(made, growing, scheme))
    folders.publish(out)
    return out


def zero_points(tensors: Tensors) -> None:
    """As AWQ's usual recipe stores them, eight rows to a word; these are all zero, so the checkpoint is as sound."""
    rows, groups = tensors[f"{LAYER}.weight_scale"].shape
    tensors[f"{LAYER}.weight_zero_point"] = torch.full((rows // 8, groups), 0x88888888 - 2**32, dtype=torch.int32)


OF_INT4 = (zero_points, without_shape, other_shape)


def failed(folder: Path, source: Path) -> list[str]:
    return [check.name for check in verify.verify(folder, source).checks if not check.passed]


def main(source: Path, out: Path) -> None:
    sound, found = quantized(source, out, Recipe("NVFP4A16")), {}
    integers = quantized(source, out.with_name("int4"), Recipe("W4A16", group=32))
    for plant in (*FAULTS, *OF_INT4):
        with tempfile.TemporaryDirectory() as folder:
            with_fault(integers if plant in OF_INT4 else sound, Path(folder), plant)
            found[plant.__name__] = failed(Path(folder), source)
    for spoil in (plain_ignore, cut_tokenizer, empty_template):
        with tempfile.TemporaryDirectory() as folder:
            spoil(sound, Path(folder))
            found[spoil.__name__] = failed(Path(folder), source)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
