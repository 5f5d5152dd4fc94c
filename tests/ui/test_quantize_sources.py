"""The Quantize page by where the model comes from: a hub, another tool that quantized it; and the very first use."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from omni_app.settings import Settings
from quantize import environment
from tests.conftest import in_environment
from tests.quantize import scripted_hub
from tests.quantize.scripted_hub import Repo
from tests.server import model_folder
from tests.stand_in_pip import stand_in_pip
from tests.stand_in_worker import small_model, stand_in
from tests.ui.test_quantize import JOB_MS, LONG_MS, look, press, state, visited

pytestmark = pytest.mark.browser


def packed_model(folder: Path) -> Path:
    """A causal language model with one layer as ModelOpt's NVFP4, by its headers."""
    small_model(folder)
    layer = "model.layers.0.mlp.up_proj"
    shapes = {
        "model.embed_tokens.weight": ("BF16", [256, 256]), f"{layer}.weight": ("U8", [256, 128]),
        f"{layer}.weight_scale": ("F8_E4M3", [256, 16]), f"{layer}.weight_scale_2": ("F32", []),
    }  # fmt: skip
    model_folder.write(folder / "model.safetensors", shapes)
    said = {"quant_algo": "NVFP4", "kv_cache_quant_algo": None, "group_size": 16, "exclude_modules": ["lm_head"]}
    described = {"producer": {"name": "modelopt", "version": "0.44.0"}, "quantization": said}
    (folder / "hf_quant_config.json").write_text(json.dumps(described))
    return folder


def test_a_quantized_checkpoint_is_inspected_verified_and_converted(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, packed = small_model(tmp_path / "small"), packed_model(tmp_path / "packed")
    worker = stand_in(tmp_path, monkeypatch)
    with visited(browser, Settings(data_dir=tmp_path / "data", port=0)) as visitors:
        page = visitors.page()
        look(page, model)
        expect(page.locator("#estimate")).to_contain_text("It fits")
        look(page, packed)
        expect(page.locator("#inspected h3")).to_have_text("Already quantized, by ModelOpt 0.44.0")
        expect(page.locator("#inspected")).to_contain_text("50.0% of its 0.131 M weights")
        expect(page.locator("#inspected")).to_contain_text("vLLM-Omni serves Qwen3Omni")
        expect(page.locator("#estimate")).to_be_hidden()
        converted = page.get_by_label("Folder for the converted model")
        expect(converted).to_have_value(str(tmp_path / "data/models/packed-compressed-tensors"))
        page.get_by_label("The BF16 model it was made from").fill(str(tmp_path / "nothing"))
        press(page, "Verify")
        expect(page.locator("#packed-answer [role=alert]")).to_contain_text("is not a model folder")
        page.get_by_label("The BF16 model it was made from").fill(str(model))
        press(page, "Verify")
        expect(state(page)).to_contain_text("Is packed sound?")
        expect(state(page)).to_contain_text("At work for")
        press(page, "Convert for vLLM-Omni")
        expect(state(page)).to_contain_text("packed to compressed-tensors")
        expect(page.locator("#packed-answer")).to_be_empty()
        press(page, "Convert for vLLM-Omni")
        expect(page.locator("#packed-answer [role=alert]")).to_contain_text("already makes")
        worker.end(0)
        expect(page.locator("#job-list")).to_contain_text("verify packed")
        expect(state(page)).to_contain_text("At work for")
        worker.end(1, error="scales: 1 are not finite.")
        expect(state(page)).to_contain_text("scales: 1 are not finite.")
        look(page, model)
        expect(page.locator("#estimate")).to_contain_text("It fits")
        expect(page.locator("#inspected")).to_be_hidden()


@pytest.mark.quantize
def test_modelopts_checkpoint_becomes_one_to_serve(browser: Browser, tiny_omni: Path, tmp_path: Path) -> None:
    in_environment("modelopt_layout.py", tiny_omni, tmp_path, "NVFP4")
    with visited(browser, Settings(data_dir=tmp_path / "data", port=0)) as visitors:
        page = visitors.page()
        look(page, tmp_path / "NVFP4")
        expect(page.locator("#inspected")).to_contain_text("vLLM-Omni 0.30 can load it as it is")
        press(page, "Convert for vLLM-Omni")
        expect(state(page).locator(".chip")).to_have_text("done", timeout=JOB_MS)
        expect(page.locator("#report")).to_contain_text("dequantize to the same F32 bit by bit")
        expect(page.locator("#serve-this")).to_be_visible()
        press(page, "Model card ▼")
        expect(page.locator("#card")).to_contain_text("the same packed weights under other names")
    assert (tmp_path / "data/models/NVFP4-compressed-tensors/README.md").is_file()


def test_a_model_on_a_hub_is_looked_at_without_fetching_it(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = small_model(tmp_path / "small")
    files = {file.name: file.read_bytes() for file in small.iterdir()}
    with (
        scripted_hub.asked(tmp_path / "hf", monkeypatch) as hub,
        visited(browser, Settings(data_dir=tmp_path / "data", port=0)) as visitors,
    ):
        hub.repos |= {"them/small": Repo(files), "them/gated": Repo(files, gated=True)}
        page = visitors.page()
        look(page, "them/nothing")
        expect(page.locator("#looked [role=alert]")).to_contain_text("no model of that name at the hub")
        look(page, "them/gated")
        expect(page.locator("#looked [role=alert]")).to_contain_text("accept its terms")
        look(page, "them/small")
        expect(page.locator("#estimate")).to_contain_text("It fits on this machine")
        output = page.get_by_label("Folder for the result")
        expect(output).to_have_value(str(tmp_path / "data/models/small-NVFP4A16"))
        assert hub.sent["model.safetensors"] <= 2 * 100_001
        monkeypatch.setenv("OMNI_QUANTIZE_PYTHON", str(tmp_path / "nothing"))
        press(page, "Start")
        expect(state(page)).to_contain_text("OMNI_QUANTIZE_PYTHON has no interpreter at")


@pytest.mark.quantize
def test_the_first_job_builds_the_environment_and_fetches_the_model(
    browser: Browser, tiny_omni: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = environment.python().parent.parent / "lib" / version / "site-packages"
    if not packages.is_dir():
        pytest.skip("the quantizer's environment is of another Python")
    monkeypatch.delenv("OMNI_QUANTIZE_PYTHON", raising=False)
    monkeypatch.setenv("OMNI_QUANTIZE_VENV", str(tmp_path / "venv"))
    pip = stand_in_pip(tmp_path, packages, monkeypatch)
    pip.lose_network()
    with (
        scripted_hub.asked(tmp_path / "hf", monkeypatch) as hub,
        visited(browser, Settings(data_dir=tmp_path / "data", port=0)) as visitors,
    ):
        hub.repos["them/tiny"] = Repo({file.name: file.read_bytes() for file in tiny_omni.iterdir()})
        page = visitors.page()
        expect(page.locator("#notes")).to_contain_text("not built yet. The first job builds it (about 2 GB")
        look(page, "them/tiny")
        expect(page.locator("#estimate")).to_contain_text("It fits on this machine")
        press(page, "Start")
        expect(state(page)).to_contain_text("check the network and the disk", timeout=LONG_MS)
        pip.find_network()
        press(page, "Start again")
        expect(state(page)).to_contain_text("Environment 2 of 3: llm-compressor", timeout=LONG_MS)
        expect(page.locator("#job-log textarea")).to_have_value(re.compile("the stand-in for pip: install"))
        pip.go()
        expect(state(page)).to_contain_text("tiny to NVFP4A16")
        expect(state(page).locator(".chip")).to_have_text("done", timeout=JOB_MS)
        expect(page.locator("#report")).to_contain_text("Verified")
        visitors.open(page)
        expect(page.get_by_label("The model's folder")).to_be_visible()
        expect(page.locator("#notes")).to_be_empty()
