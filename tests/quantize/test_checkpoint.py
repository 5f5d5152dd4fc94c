"""A source folder is refused in one sentence that names the fault and the way out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from quantize import checkpoint, modelopt
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


@pytest.mark.parametrize("offsets", [[0, 128], [8, 136]])
def test_tensors_that_do_not_fill_their_file(text_model: Path, offsets: list[int]) -> None:
    """safetensors opens no such file, and a job would find out when it comes to it."""
    header = json.dumps({"model.norm.weight": {"dtype": "BF16", "shape": [64], "data_offsets": offsets}}).encode()
    (text_model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(136))
    with pytest.raises(ModelUnusable, match=r"model\.safetensors is damaged: its tensors do not fill it"):
        checkpoint.read(text_model)


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


WEIGHT = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("shape", "offsets"), [([64, 64], [0, 50]), ([64, 64], [8192, 0]), ([-64, -64], [0, 8192]), ([64, 64], [-1, 8191])]
)
def test_tensors_without_the_bytes_of_their_shape(text_model: Path, shape: list[int], offsets: list[int]) -> None:
    header = json.dumps({WEIGHT: {"dtype": "BF16", "shape": shape, "data_offsets": offsets}}).encode()
    (text_model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(10_000))
    with pytest.raises(ModelUnusable, match="does not have the bytes of its shape"):
        checkpoint.read(text_model)


@pytest.mark.parametrize("shapes", [{}, {WEIGHT: ("BF16", [0, 64])}])
def test_files_without_weights(text_model: Path, shapes: dict[str, tuple[str, list[int]]]) -> None:
    model_folder.write(text_model / "model.safetensors", shapes)
    assert modelopt.describe(text_model).covered == 0
    with pytest.raises(ModelUnusable, match="hold no weights"):
        checkpoint.read_source(text_model)


@pytest.mark.parametrize("named", [5, "LlamaForCausalLM", [], None])
def test_architectures_that_are_no_list(text_model: Path, named: object) -> None:
    config(text_model, architectures=named)
    with pytest.raises(ModelUnusable, match="names no architecture"):
        checkpoint.read_source(text_model)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", checkpoint.INDEX])
def test_json_without_end(text_model: Path, name: str) -> None:
    deep = b"[" * 200_000
    (text_model / name).write_bytes(len(deep).to_bytes(8, "little") * (name == "model.safetensors") + deep)
    with pytest.raises(ModelUnusable, match=r"cannot be read|damaged"):
        checkpoint.read(text_model)


def test_a_pipe_is_not_waited_for(text_model: Path) -> None:
    (text_model / "model.safetensors").unlink()
    os.mkfifo(text_model / "model.safetensors")
    with pytest.raises(ModelUnusable, match="is no file"):
        checkpoint.read(text_model)


def test_a_name_that_no_file_can_have() -> None:
    with pytest.raises(ModelUnusable, match="not a model folder"):
        checkpoint.read(Path("x" * 400))


def test_experts_in_one_tensor(text_model: Path) -> None:
    model_folder.write(
        text_model / "model.safetensors", {"model.layers.0.mlp.experts.down_proj": ("BF16", [4, 64, 64])}
    )
    with pytest.raises(ModelUnusable, match="all experts in one tensor"):
        checkpoint.read_source(text_model)
