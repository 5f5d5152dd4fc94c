"""What is read from the headers of full-size checkpoints, and what is said of folders that cannot be served."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from omni_app.errors import CheckpointUnusable
from omni_app.hardware import GIB
from omni_app.server import checkpoint
from omni_app.server.checkpoint import Checkpoint
from omni_app.server.parts import CODE2WAV, TALKER, THINKER
from tests.server import model_folder
from tests.server.model_folder import Scheme, nvfp4


@pytest.mark.parametrize(
    ("kind", "formats", "thinker_gib", "talker_gib"),
    [
        ("bf16", ("bf16", "bf16"), 59.08, 6.19),
        ("fp8", ("fp8", "bf16"), 31.3, 6.19),
        ("w4a16", ("w4a16", "bf16"), 17.75, 6.19),
        ("nvfp4", ("nvfp4", "bf16"), 19.06, 6.19),
        ("nvfp4a16", ("nvfp4a16", "bf16"), 19.06, 6.19),
        ("nvfp4-talker", ("nvfp4", "nvfp4"), 19.06, 1.96),
    ],
)
def test_sizes_and_formats(
    checkpoint_of: Callable[[str], Checkpoint],
    kind: str,
    formats: tuple[str, str],
    thinker_gib: float,
    talker_gib: float,
) -> None:
    found = checkpoint_of(kind)
    assert (found.thinker_format, found.talker_format) == formats
    assert found.size(THINKER) / GIB == pytest.approx(thinker_gib, rel=0.005)
    assert found.size(TALKER) / GIB == pytest.approx(talker_gib, rel=0.005)
    assert found.size(CODE2WAV) / GIB == pytest.approx(0.40, rel=0.01)
    assert found.speaks
    assert found.speakers == ("chelsie", "ethan", "aiden")


def test_the_folder_that_a_gpu_served_has_this_many_tensors_and_bytes(
    checkpoint_of: Callable[[str], Checkpoint],
) -> None:
    found = checkpoint_of("nvfp4")
    assert found.tensors == 83_882
    assert sum(part.size for part in found.parts.values()) == pytest.approx(27.54e9, rel=0.001)
    # 160 672 tokens in 14.71 GiB and 657 792 in 12.55 GiB, as vLLM's log says.
    assert found.thinker.kv_bytes_per_token == pytest.approx(14.71 * GIB / 160_672, rel=0.001)
    assert found.talker is not None
    assert found.talker.kv_bytes_per_token == pytest.approx(12.55 * GIB / 657_792, rel=0.001)


@pytest.fixture
def copied(folder_of: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a folder, to damage: weights as links, everything else as files."""

    def copy(kind: str = "bf16") -> Path:
        target = tmp_path / kind
        target.mkdir()
        for path in folder_of(kind).iterdir():
            if path.suffix == ".safetensors":
                (target / path.name).symlink_to(path)
            else:
                shutil.copy(path, target)
        return target

    return copy


def said(folder: Path) -> str:
    with pytest.raises(CheckpointUnusable) as caught:
        checkpoint.read(folder)
    return str(caught.value)


def shard(folder: Path) -> Path:
    """The first weight file, as one of our own to damage."""
    path = min(folder.glob("*.safetensors"))
    header = path.resolve()
    path.unlink()
    with header.open("rb") as source:
        length = int.from_bytes(source.read(8), "little")
        source.seek(0)
        path.write_bytes(source.read(8 + length))
    with path.open("r+b") as file:
        file.truncate(header.stat().st_size)
    return path


def rewrite_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_no_folder(tmp_path: Path) -> None:
    assert "is not a folder" in said(tmp_path / "Qwen" / "Qwen3-Omni")


def test_a_name_too_long_for_a_folder(tmp_path: Path) -> None:
    assert "is not a folder" in said(tmp_path / ("a" * 5000))


@pytest.mark.parametrize("content", [b"[" * 200_000, b"\xff\x00", b"[]", b""])
def test_a_config_that_is_none(copied: Callable[..., Path], content: bytes) -> None:
    folder = copied()
    (folder / "config.json").write_bytes(content)
    assert "no readable config.json" in said(folder)


def test_pipes_in_place_of_files_are_not_waited_for(copied: Callable[..., Path]) -> None:
    folder = copied()
    weights = min(folder.glob("*.safetensors"))
    for path, sentence in ((weights, f"{weights.name} is missing"), (folder / "config.json", "no readable config")):
        path.unlink()
        os.mkfifo(path)
        assert sentence in said(folder)


def test_no_model_in_it(tmp_path: Path) -> None:
    assert "no readable config.json" in said(tmp_path)


def test_another_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_moe"}')
    assert "qwen3_moe, not Qwen3-Omni" in said(tmp_path)


def test_a_config_without_sizes(copied: Callable[..., Path]) -> None:
    folder = copied()
    (folder / "config.json").write_text('{"model_type": "qwen3_omni_moe", "thinker_config": {"text_config": {}}}')
    assert "thinker_config.text_config.num_hidden_layers" in said(folder)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("tokenizer.json", "tokenizer is missing"),
        ("chat_template.json", "chat template is missing"),
        ("preprocessor_config.json", "preprocessor_config.json is missing"),
        ("model-00002.safetensors", "model-00002.safetensors is missing"),
    ],
)
def test_a_missing_file_is_named(copied: Callable[..., Path], name: str, sentence: str) -> None:
    folder = copied()
    (folder / name).unlink()
    assert sentence in said(folder)


def test_all_problems_are_told_at_once(copied: Callable[..., Path]) -> None:
    folder = copied()
    for name in ("tokenizer.json", "chat_template.json", "model-00001.safetensors"):
        (folder / name).unlink()
    assert len(said(folder).splitlines()) == 3


def test_a_chat_template_inside_the_tokenizer_is_enough(copied: Callable[..., Path]) -> None:
    folder = copied()
    (folder / "chat_template.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert checkpoint.read(folder).speaks


@pytest.mark.parametrize("name", ["chat_template.json", "chat_template.jinja"])
def test_an_empty_chat_template_is_none(copied: Callable[..., Path], name: str) -> None:
    folder = copied()
    (folder / "chat_template.json").unlink()
    (folder / name).write_text("{}" if name.endswith("json") else "")
    assert "chat template is missing" in said(folder)


def test_no_weights(copied: Callable[..., Path]) -> None:
    folder = copied()
    for path in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        path.unlink()
    assert "no weights" in said(folder)


def test_a_cut_off_file_says_how_much_is_there(copied: Callable[..., Path]) -> None:
    folder = copied()
    path = shard(folder)
    whole = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(1_000_000_000)
    assert f"{path.name} is cut off: 1,000,000,000 of {whole:,} bytes" in said(folder)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
        (b"", "not a safetensors file or is damaged"),
        (b"\xff" * 64, "not a safetensors file or is damaged"),
        ((2).to_bytes(8, "little") + b"[]", "not a safetensors file or is damaged"),
        ((99_999).to_bytes(8, "little") + b'{"a":' + b"[" * 99_994, "not a safetensors file or is damaged"),
        ((9).to_bytes(8, "little") + b'{"a": {}}', "not a safetensors file or is damaged"),
    ],
)
def test_what_is_no_weight_file(copied: Callable[..., Path], content: bytes, sentence: str) -> None:
    folder = copied()
    shard(folder).write_bytes(content)
    assert sentence in said(folder)


def test_an_index_that_promises_more_than_there_is(copied: Callable[..., Path]) -> None:
    folder = copied()
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["thinker.model.layers.48.mlp.gate.weight"] = "model-00000.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "1 tensors" in said(folder)
    assert "thinker.model.layers.48.mlp.gate.weight" in said(folder)


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd"])
def test_an_index_that_climbs_out_of_its_folder(copied: Callable[..., Path], file: str) -> None:
    folder = copied()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"thinker.norm": file}}))
    assert "outside its own folder" in said(folder)


@pytest.mark.parametrize(
    ("parameter", "sentence"),
    [
        ("thinker.audio_tower.layers.0.fc1.weight", "audio tower is quantized (nvfp4)"),
        ("thinker.visual.blocks.3.mlp.linear_fc1.weight", "vision tower is quantized"),
        ("thinker.model.layers.7.mlp.gate.weight", "router (mlp.gate) is quantized"),
        ("thinker.lm_head.weight", "lm_head is quantized"),
        ("talker.model.layers.7.mlp.gate.weight", "talker's router, projections or codec head is quantized"),
        ("talker.code_predictor.model.layers.0.mlp.up_proj.weight", "code predictor is quantized"),
        ("code2wav.pre_transformer.layers.0.mlp.up_proj.weight", "code2wav part is quantized"),
    ],
)
def test_a_part_that_must_stay_bf16(tmp_path: Path, parameter: str, sentence: str) -> None:
    def change(name: str) -> Scheme | None:
        return nvfp4 if name == parameter else None

    folder = model_folder.make(tmp_path / "model", "bf16", change)
    rewrite_config(folder, **model_folder.config(quantized=True))
    message = said(folder)
    assert sentence in message
    assert len(message.splitlines()) == 1


def test_experts_of_one_layer_in_two_formats(tmp_path: Path) -> None:
    def change(name: str) -> Scheme | None:
        return nvfp4 if name == "thinker.model.layers.9.mlp.experts.5.up_proj.weight" else None

    folder = model_folder.make(tmp_path / "model", "bf16", change)
    rewrite_config(folder, **model_folder.config(quantized=True))
    message = said(folder)
    assert "experts of thinker.model.layers.9 are stored in several formats (bf16, nvfp4)" in message


def test_quantized_weights_that_config_json_does_not_mention(copied: Callable[..., Path]) -> None:
    folder = copied("nvfp4")
    rewrite_config(folder, quantization_config=None)
    assert "no quantization_config" in said(folder)


def test_compressed_tensors_only_inside_the_thinker(copied: Callable[..., Path]) -> None:
    folder = copied("nvfp4")
    config = json.loads((folder / "config.json").read_text())
    config["thinker_config"]["text_config"]["quantization_config"] = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    assert "Move quantization_config to the top level" in said(folder)


def test_a_config_that_promises_quantized_weights(copied: Callable[..., Path]) -> None:
    folder = copied("bf16")
    rewrite_config(folder, quantization_config={"quant_method": "compressed-tensors"})
    assert "but no weight is" in said(folder)


def test_modelopt_with_a_quantized_talker(copied: Callable[..., Path]) -> None:
    folder = copied("nvfp4-talker")
    rewrite_config(folder, quantization_config={"quant_method": "modelopt"})
    assert "only with a BF16 talker" in said(folder)


def test_bitsandbytes_and_strange_prefixes(copied: Callable[..., Path]) -> None:
    folder = copied("bf16")
    model_folder.write(
        folder / "model-00099.safetensors",
        {
            "model.thinker.norm.weight": ("BF16", [4]),
            "thinker.model.layers.0.mlp.experts.0.up_proj.weight": ("U8", [786432, 1]),
            "thinker.model.layers.0.mlp.experts.0.up_proj.weight.absmax": ("U8", [24576]),
        },
    )
    (folder / "model.safetensors.index.json").unlink()
    rewrite_config(folder, quantization_config={"quant_method": "bitsandbytes"})
    message = said(folder)
    assert "cannot load bitsandbytes" in message
    assert "(model.thinker.norm for one)" in message


def test_a_model_that_only_writes(copied: Callable[..., Path]) -> None:
    folder = copied("bf16")
    rewrite_config(folder, enable_audio_output=False)
    assert not checkpoint.read(folder).speaks


def test_offsets_and_counters_are_not_taken_for_quantized_weights(copied: Callable[..., Path]) -> None:
    folder = copied("bf16")
    buffers = {"code2wav.code_offset": ("I64", [1, 16, 1]), "talker.steps.num_batches_tracked": ("I64", [1])}
    model_folder.write(folder / "model-00099.safetensors", buffers)
    (folder / "model.safetensors.index.json").unlink()
    assert checkpoint.read(folder).parts["code2wav"].formats[0] == "bf16"
