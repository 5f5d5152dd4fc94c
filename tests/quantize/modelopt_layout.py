"""Rewrite a BF16 model as ModelOpt would export it: `python modelopt_layout.py SOURCE OUT KIND ...`.

Layout and arithmetic as published in NVIDIA/Model-Optimizer (docs/source/deployment/3_unified_hf.rst; NVFP4QTensor:
weight_scale_2 = amax / (6 * 448), one for layers that engines fuse; weight_scale = amax of 16 / 6 / weight_scale_2 in
E4M3; codes in E2M1, the even column in the low nibble), and as vLLM 0.30 loads it. Each KIND becomes a folder OUT/KIND:
NVFP4, NVFP4-talker (which also packs the talker's decoder), W4A16_NVFP4 or FP8; +nan, +nested, +pre-quant or
+no-lm-head behind it plants that fault.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import defaultdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from quantize.schemes import fused_with

THINKER = r"thinker\.model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.experts\.\d+\.\w+_proj)\.weight"
TALKER = r"talker\.model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(experts\.\d+|shared_expert)\.\w+_proj)\.weight"
KEPT = ["thinker.audio_tower*", "thinker.visual*", "thinker.lm_head", "thinker.model.layers.*.mlp.gate", "code2wav*"]
LEVELS = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
Tensors = dict[str, torch.Tensor]


def nvfp4(weight: torch.Tensor, amax: torch.Tensor) -> Tensors:
    """weight: [out, in]; amax: of all layers that are fused with it."""
    double = amax.float() / (6 * 448)
    blocks = weight.float().unflatten(1, (-1, 16))
    scale = (blocks.abs().amax(-1) / 6 / double).clamp(2**-9, 448).to(torch.float8_e4m3fn)
    scaled = blocks / (scale.float() * double)[..., None]
    codes = (scaled.abs()[..., None] - LEVELS).abs().argmin(-1) + 8 * (scaled < 0)
    pairs = codes.flatten(1).to(torch.uint8).unflatten(1, (-1, 2))
    return {"weight": pairs[..., 0] | pairs[..., 1] << 4, "weight_scale": scale, "weight_scale_2": double}


def fp8(weight: torch.Tensor, amax: torch.Tensor) -> Tensors:
    scale = amax.float() / 448
    return {"weight": (weight.float() / scale).to(torch.float8_e4m3fn), "weight_scale": scale}


def rewritten(tensors: Tensors, algorithm: str) -> Tensors:
    pattern = re.compile(f"{THINKER}|{TALKER}" if algorithm.endswith("-talker") else THINKER)
    chosen = [name for name in tensors if pattern.fullmatch(name)]
    together = defaultdict(list)
    for name in chosen:
        together[fused_with(name)].append(tensors[name].abs().max())
    made: Tensors = {}
    for name in sorted(chosen):
        weight, owner = tensors.pop(name), name.removesuffix(".weight")
        amax = torch.stack(together[fused_with(name)]).max()
        parts = fp8(weight, amax) if algorithm == "FP8" else nvfp4(weight, amax)
        if algorithm != "W4A16_NVFP4":
            parts["input_scale"] = torch.tensor(input_scale(fused_with(name)))
        made |= {f"{owner}.{last}": value.contiguous() for last, value in parts.items()}
    return tensors | made


def input_scale(key: str) -> float:
    """As of some range of inputs, the same for layers that share theirs."""
    return 0.01 + sum(map(ord, key)) % 1000 / 1e5


def plant(tensors: Tensors, fault: str) -> None:
    if fault == "pre-quant":  # AWQ's, of a layer whose norm could not take it
        tensors["thinker.model.layers.0.self_attn.o_proj.pre_quant_scale"] = torch.full((128,), 2.0)
    if fault == "nan":  # what ModelOpt 0.44 writes where a block scale rounds above 448
        name = next(name for name in tensors if name.endswith("down_proj.weight_scale"))
        tensors[name].view(torch.uint8)[0, 0] = 0x7F


def described(config: dict[str, object], out: Path, algorithm: str, fault: str) -> None:
    """config.json, and hf_quant_config.json unless the description is nested in config.json."""
    exclude = [*KEPT] if algorithm.endswith("-talker") else [*KEPT, "talker*"]
    if fault == "no-lm-head":
        exclude.remove("thinker.lm_head")
    algorithm = algorithm.removesuffix("-talker")
    if fault == "nested":
        section = {"quant_method": "modelopt", "quant_algo": algorithm, "ignore": exclude}
        config["thinker_config"]["text_config"]["quantization_config"] = section  # type: ignore[index]
    else:
        said = {"quant_algo": algorithm, "kv_cache_quant_algo": None, "group_size": 16, "exclude_modules": exclude}
        held = {"producer": {"name": "modelopt", "version": "0.44.0"}, "quantization": said}
        (out / "hf_quant_config.json").write_text(json.dumps(held))
    (out / "config.json").write_text(json.dumps(config))


def export(source: Path, out: Path, algorithm: str, fault: str) -> None:
    out.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix != ".safetensors" and "index" not in file.name:
            shutil.copy(file, out)
    tensors = {name: value for file in sorted(source.glob("*.safetensors")) for name, value in load_file(file).items()}
    tensors = rewritten(tensors, algorithm)
    plant(tensors, fault)
    names = sorted(tensors)
    middle = len(names) // 2  # in the midst of a layer, so that its tensors lie in two files
    shards = {"model-00001.safetensors": names[:middle], "model-00002.safetensors": names[middle:]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, out / file, metadata={"format": "pt"})
    weight_map = {name: file for file, held in shards.items() for name in held}
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    described(json.loads((source / "config.json").read_text()), out, algorithm, fault)


if __name__ == "__main__":
    for kind in sys.argv[3:]:
        named, _, planted = kind.partition("+")
        export(Path(sys.argv[1]), Path(sys.argv[2]) / kind, named, planted)
