"""A source folder is refused in one sentence that names the fault and the way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantize import checkpoint
from quantize.errors import ModelUnusable
from tests.server import model_folder


def config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_reads_shapes_and_sizes_from_headers(text_model: Path) -> None:
    found = checkpoint.read_source(text_model)
    q = found.tensors["model.layers.0.self_attn.q_proj.weight"]
    assert (q.dtype, q.shape, q.size, q.file) == ("BF16", (64, 64), 8192, "model.safetensors")
    assert found.size == 2 * sum(tensor.count for tensor in found.tensors.values())


def test_no_model_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match=r"no config\.json"):
        checkpoint.read_source(tmp_path)


def test_config_is_not_json(text_model: Path) -> None:
    (text_model / "config.json").write_text("{")
    with pytest.raises(ModelUnusable, match="cannot be read as JSON"):
        checkpoint.read_source(text_model)


def test_no_weights(text_model: Path) -> None:
    (text_model / "model.safetensors").unlink()
    with pytest.raises(ModelUnusable, match="no weights"):
        checkpoint.read_source(text_model)


def test_truncated_shard_is_named(text_model: Path) -> None:
    shard = text_model / "model.safetensors"
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 1)
    with pytest.raises(ModelUnusable, match=r"model\.safetensors is cut off: [\d,]+ of [\d,]+ bytes"):
        checkpoint.read_source(text_model)


def test_damaged_header(text_model: Path) -> None:
    (text_model / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0no json at all!!")
    with pytest.raises(ModelUnusable, match="damaged"):
        checkpoint.read_source(text_model)


def test_missing_shard_is_named(text_model: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model-00002.safetensors"}}
    (text_model / checkpoint.INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelUnusable, match=r"model-00002\.safetensors is missing"):
        checkpoint.read_source(text_model)


def test_tensor_of_the_index_that_no_file_has(text_model: Path) -> None:
    index = {"weight_map": {"model.norm.bias": "model.safetensors"}}
    (text_model / checkpoint.INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelUnusable, match=r"model\.norm\.bias"):
        checkpoint.read_source(text_model)


def test_index_must_stay_in_the_folder(text_model: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (text_model / checkpoint.INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelUnusable, match="outside its own folder"):
        checkpoint.read_source(text_model)


def test_already_quantized(text_model: Path) -> None:
    config(text_model, quantization_config={"quant_method": "compressed-tensors"})
    with pytest.raises(ModelUnusable, match="already quantized"):
        checkpoint.read_source(text_model)


def test_unknown_architecture(text_model: Path) -> None:
    config(text_model, architectures=["FluxTransformer2DModel"])
    with pytest.raises(ModelUnusable, match="FluxTransformer2DModel, which this tool does not know"):
        checkpoint.read_source(text_model)


def test_weights_that_are_no_floats(text_model: Path) -> None:
    model_folder.write(text_model / "model.safetensors", {"model.layers.0.mlp.up_proj.weight": ("U8", [64, 64])})
    with pytest.raises(ModelUnusable, match="stored as U8"):
        checkpoint.read_source(text_model)


def test_experts_in_one_tensor(text_model: Path) -> None:
    model_folder.write(
        text_model / "model.safetensors", {"model.layers.0.mlp.experts.down_proj": ("BF16", [4, 64, 64])}
    )
    with pytest.raises(ModelUnusable, match="all experts in one tensor"):
        checkpoint.read_source(text_model)
