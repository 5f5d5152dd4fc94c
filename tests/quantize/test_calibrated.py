"""Calibrated schemes on a tiny Qwen3-Omni: the stream equals llm-compressor's sequential run; bad samples are told."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from quantize import calibration, checkpoint, folder, job, plan, samples, worker
from quantize.errors import CalibrationUnusable
from quantize.job import Request
from quantize.progress import silent
from quantize.schemes import RECIPES as RECIPE_TABLE
from quantize.schemes import Recipe
from tests.quantize.conftest import Driver
from tests.quantize.test_plan import EVERY_PART

RECIPES: dict[str, dict[str, Any]] = {
    "NVFP4": {"scheme": "NVFP4", "samples": 4},
    "NVFP4-both": {"scheme": "NVFP4", "samples": 4, "parts": EVERY_PART},
    "NVFP4-gptq": {"scheme": "NVFP4", "algorithm": "gptq", "samples": 4},
    "NVFP4-awq-both": {"scheme": "NVFP4", "algorithm": "awq", "samples": 2, "parts": EVERY_PART},
    "W4A16-awq": {"scheme": "W4A16", "group": 32, "algorithm": "awq", "samples": 2},
    "W4A16-gptq-both": {"scheme": "W4A16", "group": 32, "algorithm": "gptq", "samples": 4, "parts": EVERY_PART},
}


@pytest.fixture(scope="module")
def results(drive: Driver, tiny_omni: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return drive("run_recipes.py", tiny_omni, tmp_path_factory.mktemp("calibrated"), json.dumps(RECIPES))


@pytest.mark.quantize
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", RECIPES)
def test_passes_its_own_verification(results: Any, name: str) -> None:
    assert "error" not in results[name]
    assert results[name]["report"]["passed"]


@pytest.mark.quantize
@pytest.mark.parametrize("name", RECIPES)
def test_reloads_and_is_near_the_original(results: Any, name: str) -> None:
    quality = results[name]["report"]["quality"]
    assert 0 < quality["kl"] < 0.05
    assert quality["agreement"] > 0.6
    assert results[name]["report"]["speech"]["said_after"]


@pytest.mark.quantize
def test_every_quantized_layer_knows_its_inputs_range(results: Any) -> None:
    names = results["NVFP4-both"]["dtypes"]
    layers = {name.rpartition(".")[0] for name in names if name.endswith("weight_packed")}
    assert layers == {name.rpartition(".")[0] for name in names if name.endswith("input_global_scale")}
    weights = results["NVFP4-both"]["config"]["quantization_config"]["config_groups"]["group_0"]
    assert weights["input_activations"]["dynamic"] == "local"


@pytest.mark.quantize
@pytest.mark.timeout(900)
def test_stream_equals_the_sequential_run(drive: Driver, tiny_omni: Path, tmp_path: Path) -> None:
    found = drive("compare_sequential.py", tiny_omni, tmp_path)
    assert found["same_names"]
    assert found["identical"] == found["weights"] > 500
    assert found["inputs"] > 50
    assert found["input_error"] < 0.02  # llm-compressor rounds to BF16, and sums in another order
    assert found["input_error_propagating"] < 0.2


def write_lines(path: Path, *entries: object) -> Path:
    path.write_text("\n".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in entries))
    return path


def test_unreadable_samples_are_skipped_named_and_counted(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    lines = write_lines(
        tmp_path / "set.jsonl",
        {"text": "one"}, "{", {"text": "two"}, {"text": "x", "image": "broken.png"}, {"text": "y", "audio": "gone.wav"},
    )  # fmt: skip
    pytest.importorskip("PIL")
    found = samples.read(str(lines), 2, media=False)
    assert [sample.text for sample in found.found] == ["one", "two"]
    with pytest.raises(CalibrationUnusable, match="Only 1 calibration samples"):
        samples.read(str(write_lines(tmp_path / "one.jsonl", {"text": "one"}, "{")), 2, media=False)


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    texts = ["first", "a\u2028b", "c\x85d"]
    lines = "\r\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    (tmp_path / "set.jsonl").write_bytes(f"\ufeff{lines}\r\n".encode())
    found = samples.read(str(tmp_path / "set.jsonl"), 3, media=False)
    assert [sample.text for sample in found.found] == texts
    assert found.skipped == ()


def test_a_set_with_names_of_its_own_is_refused_instead_of_asking_about_nothing(tmp_path: Path) -> None:
    own = write_lines(tmp_path / "own.jsonl", {"prompt": "one"}, {"messages": [{"role": "user", "content": "two"}]})
    with pytest.raises(CalibrationUnusable, match='line 1: it is empty: there is no "text", "image" or "audio" in it'):
        samples.read(str(own), 2, media=True)
    columns = write_lines(tmp_path / "columns.jsonl", *({"text": word, "image": None} for word in "ab"))
    assert [sample.text for sample in samples.read(str(columns), 2, media=True).found] == ["a", "b"]


def test_a_capture_that_a_full_disk_cut_off_is_made_again(tmp_path: Path) -> None:
    kept, key = tmp_path / "amax.json", {"source": "a"}
    whole = json.dumps({"key": key, "amax": {"q_proj": 1.5}})
    kept.write_text(whole)
    assert calibration._stored(kept, key) == {"q_proj": 1.5}
    kept.write_text(whole[:-5])
    assert calibration._stored(kept, key) == {}


def test_damaged_picture_is_skipped(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("some text")
    found = samples.read(str(tmp_path), 3, media=True)
    assert len(found.found) == 3
    assert len(found.skipped) == 1
    assert found.skipped[0].startswith("broken.png: ")


def test_sounds_and_pictures_that_only_look_like_ones_are_skipped(tmp_path: Path) -> None:
    Image = pytest.importorskip("PIL.Image")
    pytest.importorskip("soundfile")
    for name, content in (("a.mp3", b"no sound" * 500), ("b.wav", b"RIFF no sound"), ("c.flac", b"")):
        (tmp_path / name).write_bytes(content)
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    for name in ("d", "e"):
        (tmp_path / f"{name}.txt").write_text("some text")
    found = samples.read(str(tmp_path), 3, media=True)
    assert len(found.found) == 3
    assert [line.partition(":")[0] for line in found.skipped] == ["a.mp3", "b.wav", "c.flac", "huge.png"]


def mixed_set(folder: Path, sounds: int, pictures: int, texts: int) -> str:
    """A data set of so many readable samples of each kind, and one broken picture."""
    from PIL import Image

    folder.mkdir()
    for number in range(sounds):
        shutil.copy(samples.OWN.parent / "../assets/question.wav", folder / f"{number}.wav")
    for number in range(pictures):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    for number in range(texts):
        (folder / f"{number}.txt").write_text(f"text {number}")
    (folder / "broken.png").write_bytes(b"no picture")
    return str(folder)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for librosa, which only the quantizer's own environment has."""
    monkeypatch.setattr(samples, "_sound", lambda path: path.read_bytes())


def kinds(found: samples.Samples) -> Counter[str]:
    held = ("sound" if s.sound is not None else "picture" if s.image is not None else "text" for s in found.found)
    return Counter(held)


@pytest.mark.usefixtures("heard")
def test_mix_takes_of_each_kind_what_it_says(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    found = samples.read(mixed_set(tmp_path / "set", 9, 9, 9), 20, True, "nvidia")
    assert kinds(found) == {"sound": 6, "picture": 6, "text": 8}
    assert len(found.skipped) <= 1
    recipe = RECIPE_TABLE["nvidia-mix"][0]
    assert samples._quotas(recipe.mix, recipe.samples) == {"sound": 150, "picture": 150, "text": 200}


@pytest.mark.usefixtures("heard")
def test_mix_that_cannot_be_filled_says_what_is_missing(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    with pytest.raises(CalibrationUnusable, match=r"lacks 2 of picture .*1 samples cannot be read, broken.png"):
        samples.read(mixed_set(tmp_path / "set", 9, 4, 9), 20, True, "nvidia")


@pytest.mark.parametrize(("where", "media"), [("", True), ("set", False)])
def test_mix_needs_a_data_set_and_a_model_with_ears(where: str, media: bool) -> None:
    with pytest.raises(CalibrationUnusable, match="150 of sound, 150 of picture, 200 of text needs a"):
        samples.read(where, 500, media, "nvidia")


def test_no_calibration_set(tmp_path: Path) -> None:
    with pytest.raises(CalibrationUnusable, match="no calibration set"):
        samples.read(str(tmp_path / "gone.jsonl"), 2, media=True)


def test_a_set_that_was_changed_is_captured_anew(
    text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan.make(checkpoint.read_source(text_model), Recipe("NVFP4"))
    layers, captured = [plan.module(name) for name in made.quantized], iter([1.0, 2.0])
    monkeypatch.setattr(calibration, "_capture", lambda *_: dict.fromkeys(layers, next(captured)))
    own = tmp_path / "set"
    own.mkdir()
    (own / "a.txt").write_text("one")

    def found() -> set[float]:
        return set(calibration.amax(made, str(own), tmp_path / "store").values())

    assert [found(), found()] == [{1.0}, {1.0}]
    (own / "b.txt").write_text("another")
    assert found() == {2.0}


def test_a_set_that_is_gone_is_told_before_anything_is_made(
    text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Request(str(text_model), str(tmp_path / "out"), Recipe("NVFP4"), str(tmp_path / "gone.jsonl"))
    monkeypatch.setattr(folder, "begin", lambda source, out: pytest.fail("it was begun"))
    with pytest.raises(CalibrationUnusable, match="no calibration set"):
        worker.quantize(job.create(tmp_path / "jobs", asked), silent)


def test_own_set_has_every_kind() -> None:
    entries = [json.loads(line) for line in samples.OWN.read_text().splitlines()]
    assert any("image" in entry and "audio" in entry for entry in entries)
    assert sum("image" in entry for entry in entries) >= 4
    assert sum("audio" in entry for entry in entries) >= 4
    for entry in entries:
        for kind in ("image", "audio"):
            assert kind not in entry or (samples.OWN.parent / entry[kind]).is_file()
