"""Layers that are stored otherwise than config.json says are found by headers alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from quantize import formats
from quantize.checkpoint import Checkpoint, Tensor
from quantize.verify.described import described
from quantize.verify.names import names

ROWS, COLUMNS = 256, 512
NVFP4 = {"weight_packed": ("U8", (ROWS, COLUMNS // 2)), "weight_scale": ("F8_E4M3", (ROWS, COLUMNS // 16)),
         "weight_global_scale": ("F32", (1,))}  # fmt: skip
INPUTS = {"input_global_scale": ("F32", (1,))}
FP8 = {"weight": ("F8_E4M3", (ROWS, COLUMNS)), "weight_scale": ("BF16", (ROWS, 1))}
BLOCKS = {**FP8, "weight_scale": ("BF16", (ROWS // 128, COLUMNS // 128))}
INT4 = {"weight_packed": ("I32", (ROWS, COLUMNS // 8)), "weight_scale": ("BF16", (ROWS, COLUMNS // 32)),
        "weight_shape": ("I64", (2,))}  # fmt: skip
LOCAL = {"num_bits": 4, "type": "float", "dynamic": "local"}
Stored = Mapping[str, tuple[str, tuple[int, ...]]]


def group(bits: int, kind: str, strategy: str, inputs: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"weights": {"num_bits": bits, "type": kind, "strategy": strategy, **more}, "input_activations": inputs}


A16 = group(4, "float", "tensor_group", group_size=16)
A4 = group(4, "float", "tensor_group", LOCAL, group_size=16)
ROW = group(8, "float", "channel", {"dynamic": True})
BLOCK = group(8, "float", "block", {"dynamic": True}, block_structure=[128, 128])
GROUPS = group(4, "int", "group", group_size=32)


def passes(stored: Stored, config: dict[str, Any], folder: Path = Path()) -> bool:
    tensors = {
        f"q_proj.{last}": Tensor(f"q_proj.{last}", dtype, shape, 0, "") for last, (dtype, shape) in stored.items()
    }
    return described(Checkpoint(folder, config, tensors), formats.layers(tensors)).passed


def said(form: str, *groups: dict[str, Any]) -> dict[str, Any]:
    named = {f"group_{number}": one for number, one in enumerate(groups)}
    return {"quantization_config": {"quant_method": "compressed-tensors", "format": form, "config_groups": named}}


@pytest.mark.parametrize(
    ("stored", "config"),
    [
        (NVFP4, said("nvfp4-pack-quantized", A16)),
        ({**NVFP4, **INPUTS}, said("nvfp4-pack-quantized", A4)),
        (FP8, said("float-quantized", ROW)),
        (BLOCKS, said("float-quantized", BLOCK)),
        (INT4, said("pack-quantized", GROUPS)),
        (NVFP4, said("mixed-precision", ROW, {**A16, "format": "nvfp4-pack-quantized"})),
    ],
)
def test_what_is_stored_as_described(stored: Stored, config: dict[str, Any]) -> None:
    assert passes(stored, config)


@pytest.mark.parametrize(
    ("stored", "config"),
    [
        (NVFP4, said("nvfp4-pack-quantized", A4)),
        ({**NVFP4, **INPUTS}, said("nvfp4-pack-quantized", A16)),
        (NVFP4, said("float-quantized", A16)),
        (NVFP4, said("nvfp4-pack-quantized", group(8, "float", "tensor_group", group_size=16))),
        (NVFP4, said("nvfp4-pack-quantized")),
        (FP8, said("nvfp4-pack-quantized", A16)),
        (FP8, said("float-quantized", BLOCK)),
        (FP8, said("float-quantized", group(8, "float", "channel", {"dynamic": False}))),
        (INT4, said("pack-quantized", group(4, "int", "group", group_size=128))),
    ],
)
def test_what_is_stored_otherwise(stored: Stored, config: dict[str, Any]) -> None:
    assert not passes(stored, config)


@pytest.mark.parametrize(
    ("targets", "ignore", "wrong"),
    [
        (["Linear"], ["re:.*o_proj$"], 0),
        (["Linear"], [], 1),
        (["re:.*q_proj$"], [], 0),
        (["model.layers.0.self_attn.q_proj"], [], 0),
        (["re:.*mlp.*"], [], 1),
        ([], [], 1),
    ],
)
def test_layers_are_built_as_targets_and_ignore_say(targets: list[str], ignore: list[str], wrong: int) -> None:
    owner = "model.layers.0.self_attn"
    stored = {f"{owner}.q_proj.{last}": Tensor("", dtype, shape, 0, "") for last, (dtype, shape) in NVFP4.items()}
    tensors = {**stored, f"{owner}.o_proj.weight": Tensor("", "BF16", (ROWS, COLUMNS), 0, "")}
    config = said("nvfp4-pack-quantized", {**A16, "targets": targets})
    config["quantization_config"]["ignore"] = ignore
    found = names(Checkpoint(Path(), config, tensors), formats.layers(tensors))
    assert len(found.offenders) == wrong
    assert found.passed is not bool(wrong)


@pytest.mark.parametrize(
    ("algorithm", "more", "passed"),
    [
        ("NVFP4", {}, False),
        ("NVFP4", {"input_scale": ("F32", ())}, True),
        ("W4A16_NVFP4", {}, True),
        ("FP8", {}, False),
    ],
)
def test_modelopts_inputs_have_scales(tmp_path: Path, algorithm: str, more: dict[str, Any], passed: bool) -> None:
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": algorithm}}))
    stored = {"weight": NVFP4["weight_packed"], "weight_scale": NVFP4["weight_scale"], "weight_scale_2": ("F32", ())}
    assert passes({**stored, **more}, {}, tmp_path) is passed
