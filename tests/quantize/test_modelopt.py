"""ModelOpt's checkpoints are recognised, measured, judged for serving, verified, and converted without loss."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from omni_app.errors import CheckpointUnusable
from omni_app.server import checkpoint as serving
from quantize import checkpoint, convert, environment, modelopt
from quantize.errors import ModelUnusable
from quantize.modelopt import Declared
from tests.quantize.conftest import Driver
from tests.quantize.job_steps import Command
from tests.server import model_folder

Export = Callable[[str], Path]
Convert = Callable[[str], tuple[Path, dict[str, Any]]]
Measured = list[tuple[dict[str, Any], Path]]
KINDS = ("NVFP4", "NVFP4+nested", "NVFP4+nan", "NVFP4+pre-quant", "NVFP4+no-lm-head", "NVFP4-talker",
         "W4A16_NVFP4+nested", "FP8")  # fmt: skip


@pytest.fixture(scope="module")
def export(drive: Driver, tiny_omni: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Gives the folder of the tiny model as ModelOpt would export it, for each of KINDS. Read it, never change it."""
    out = tmp_path_factory.mktemp("modelopt")
    drive("modelopt_layout.py", tiny_omni, out, *KINDS)
    return lambda kind: out / kind


@pytest.fixture(scope="module")
def converted(export: Export, tmp_path_factory: pytest.TempPathFactory) -> Convert:
    """Gives a function that converts an export, each kind once: the folder, and the proof that was printed."""

    @cache
    def once(kind: str) -> tuple[Path, dict[str, Any]]:
        out = tmp_path_factory.mktemp("converted") / "out"
        code, proof = ran([sys.executable, "-m", "quantize", "convert", str(export(kind)), str(out)])
        assert code == 0, proof
        return out, proof

    return once


@pytest.fixture(scope="module")
def measured(export: Export, converted: Convert, tiny_omni: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """The reports of the NVFP4 export and of what it was converted to, and the folders with what both said."""
    found = []
    for folder in (export("NVFP4"), converted("NVFP4")[0]):
        sounds = tmp_path_factory.mktemp("sounds")
        command = [sys.executable, "-m", "quantize", "verify", folder, "--original", tiny_omni, "--measure", "--sounds"]
        code, report = ran([*map(str, command), str(sounds)])
        assert code == 0, report
        found.append((report, sounds))
    return found


def ran(command: list[str]) -> tuple[int, dict[str, Any]]:
    ended = subprocess.run(command, cwd=environment.ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.returncode, json.loads(ended.stdout.strip().splitlines()[-1])


def nvfp4(name: str, shape: list[int]) -> model_folder.Laid:
    rows, columns = shape
    yield name, "U8", [rows, columns // 2]
    yield f"{name}_scale", "F8_E4M3", [rows, columns // 16]
    yield f"{name}_scale_2", "F32", []
    yield f"{name.removesuffix('.weight')}.input_scale", "F32", []


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """The published model by name and shape, its thinker packed by ModelOpt."""
    layers = model_folder.THINKER_LAYERS
    folder = model_folder.make(tmp_path / "big", "bf16", lambda name: nvfp4 if layers.fullmatch(name) else None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [checkpoint.OMNI]}))
    said = {"quant_algo": "NVFP4", "kv_cache_quant_algo": None, "group_size": 16,
            "exclude_modules": ["*lm_head", "*mlp.gate", "talker*"]}  # fmt: skip
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": said}))
    return folder


def test_coverage_counts_weights_alone(big: Path) -> None:
    found = modelopt.describe(big)
    assert found.quantizer == "modelopt"
    assert found.weights == pytest.approx(35.26e9, rel=1e-3)
    assert found.covered == pytest.approx(0.848, abs=1e-3)
    parts = {part.part: part for part in found.parts}
    assert parts["thinker_experts"].quantized == parts["thinker_experts"].weights == 48 * 128 * 3 * 2048 * 768
    assert parts["code2wav"].quantized == 0
    assert found.obstacles == ()


def test_serves_profile_takes_it_too(big: Path) -> None:
    found = serving.read(big)
    assert (found.method, found.thinker_format, found.talker_is_quantized) == ("modelopt", "nvfp4", False)


@pytest.mark.parametrize(
    ("exclude", "name", "excluded"),
    [
        (["*lm_head"], "thinker.lm_head", True),
        (["thinker.lm_head"], "thinker.lm_head", True),
        (["lm_head"], "thinker.lm_head", True),
        (["thinker.model.layers.0.mlp.gate"], "thinker.model.layers.0.mlp.gate", True),
        (["thinker.model.layers.*.mlp.gate"], "thinker.model.layers.7.mlp.gate", True),
        (["thinker.model.layers.*.mlp.gate"], "thinker.model.layers.7.mlp.experts.1.gate_proj", False),
        (["talker*"], "talker.model.layers.0.self_attn.q_proj", True),
        ([], "thinker.lm_head", False),
    ],
)
def test_excluded_modules_as_vllm_reads_them(exclude: list[str], name: str, excluded: bool) -> None:
    assert Declared("", "NVFP4", "", tuple(exclude), "").excludes(name) is excluded


def test_description_that_cannot_be_read(big: Path) -> None:
    (big / "hf_quant_config.json").write_text('{"quantization": null}')
    with pytest.raises(ModelUnusable, match=r"hf_quant_config\.json cannot be read"):
        modelopt.describe(big)


def test_fields_that_vllm_requires(big: Path) -> None:
    (big / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4", "exclude_modules": ["*"]}}')
    assert "has no group_size, kv_cache_quant_algo" in modelopt.describe(big).obstacles[0]


def test_unquantized_model_is_told_as_such(published: Path) -> None:
    found = modelopt.describe(published)
    assert (found.quantizer, found.covered, found.declared) == ("", 0.0, None)


@pytest.mark.quantize
@pytest.mark.timeout(600)
def test_inspection_of_a_quantized_talker_names_it(export: Export, command: Command) -> None:
    code, found = ran(command("inspect", export("NVFP4-talker")))
    assert code == 0
    assert not found["servable"]
    assert "also quantizes: Talker attention, Talker experts, Talker shared experts" in found["obstacles"][0]
    with pytest.raises(CheckpointUnusable, match="only with a BF16 talker"):
        serving.read(export("NVFP4-talker"))


@pytest.mark.quantize
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["FP8", "NVFP4+nested"])
def test_sound_export_passes_verification(export: Export, command: Command, tiny_omni: Path, kind: str) -> None:
    code, found = ran(command("verify", export(kind), "--source", tiny_omni))
    assert code == 0
    passes(export(kind), found)


@pytest.mark.quantize
@pytest.mark.timeout(600)
def test_sound_export_passes_verification_that_measures(export: Export, measured: Measured) -> None:
    passes(export("NVFP4"), measured[0][0])


def passes(folder: Path, found: dict[str, Any]) -> None:
    assert modelopt.describe(folder).obstacles == ()
    assert serving.read(folder).method == "modelopt"
    assert [check["name"] for check in found["checks"] if not check["passed"]] == []
    assert found["mean_error"]["thinker_experts"] < 0.11


@pytest.mark.quantize
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("fault", "check"), [("nan", "scales"), ("no-lm-head", "names for vLLM")])
def test_faults_are_named_and_not_converted(
    export: Export, command: Command, tmp_path: Path, fault: str, check: str
) -> None:
    folder = export(f"NVFP4+{fault}")
    code, found = ran(command("verify", folder))
    assert code == 1
    assert [one["name"] for one in found["checks"] if not one["passed"]] == [check]
    code, found = ran(command("convert", folder, tmp_path / "out"))
    assert code == 1
    assert found["error"].startswith(f"{check}: 1 ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.quantize
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["NVFP4", "W4A16_NVFP4+nested"])
def test_conversion_is_proven_equal_and_can_be_served(converted: Convert, kind: str) -> None:
    out, proof = converted(kind)
    layers = sum(name.endswith("weight_packed") for name in checkpoint.read(out).tensors)
    assert proof["layers"] == layers == 2 * (4 + 4 * 3)
    assert 0 < proof["identical"] <= layers
    assert proof["greatest_difference"] < 2**-22
    assert not modelopt.describe(out).declared
    served = serving.read(out)
    assert served.method == "compressed-tensors"
    assert served.thinker_format == ("nvfp4" if kind == "NVFP4" else "nvfp4a16")
    assert "base_model_relation: quantized" in (out / "README.md").read_text()


@pytest.mark.quantize
@pytest.mark.timeout(600)
def test_conversion_without_input_scales_passes_verification(
    converted: Convert, command: Command, tiny_omni: Path
) -> None:
    code, verified = ran(command("verify", converted("W4A16_NVFP4+nested")[0], "--source", tiny_omni))
    assert code == 0, verified


@pytest.mark.quantize
@pytest.mark.timeout(600)
def test_converted_model_reads_and_speaks_as_before(measured: Measured) -> None:
    before, after = (report["quality"] for report, _ in measured)
    assert after == pytest.approx(before, rel=1e-4)
    assert 0 < after["kl"] < 0.1
    assert "speech" in measured[1][0]["not_measured"]  # a random model says no words
    sounds = [(folder / "speech_after.wav").read_bytes() for _, folder in measured]
    assert len(sounds[0]) > 2_000
    assert sounds[0] == sounds[1]


@pytest.mark.quantize
@pytest.mark.timeout(600)
def test_only_modelopts_nvfp4_is_converted(export: Export, tiny_omni: Path, tmp_path: Path) -> None:
    refused = {
        tiny_omni: "not made by ModelOpt", export("FP8"): "holds FP8",
        export("NVFP4+pre-quant"): "o_proj.pre_quant_scale, for which compressed-tensors has no place",
    }  # fmt: skip
    for folder, words in refused.items():
        with pytest.raises(ModelUnusable, match=words):
            convert.require(folder, tmp_path / "out")
        assert words in modelopt.describe(folder).unconvertible
    convert.require(export("NVFP4"), tmp_path / "out")
