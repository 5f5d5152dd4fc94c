from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantize import environment
from quantize.checkpoint import OMNI
from tests.server import model_folder

HERE = Path(__file__).parent
Driver = Callable[..., Any]


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published 35 B model by name, shape and size; its files are holes behind true headers."""
    folder = model_folder.make(tmp_path_factory.mktemp("published") / "omni", "bf16")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [OMNI]}))
    return folder


@pytest.fixture(scope="session")
def drive() -> Driver:
    """Gives a function that runs a script of this folder in the quantizer's interpreter and returns its JSON line."""
    if not environment.ready():
        pytest.skip("the quantizer's environment is not built: make quantize-env")

    def run(script: str, *arguments: object) -> Any:
        command = [str(environment.python()), str(HERE / script), *map(str, arguments)]
        env = environment.variables()
        ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=environment.ROOT)
        assert ended.returncode == 0, ended.stderr[-3000:]
        lines = ended.stdout.strip().splitlines()
        return json.loads(lines[-1]) if lines else None

    return run


@pytest.fixture
def text_model(tmp_path: Path) -> Path:
    """A causal language model's folder with one layer and no weights behind its headers."""
    shapes = {
        "model.embed_tokens.weight": [64, 64],
        "model.layers.0.self_attn.q_proj.weight": [64, 64],
        "model.layers.0.self_attn.k_proj.weight": [32, 64],
        "model.layers.0.self_attn.v_proj.weight": [32, 64],
        "model.layers.0.self_attn.o_proj.weight": [64, 64],
        "model.layers.0.mlp.gate_proj.weight": [128, 64],
        "model.layers.0.mlp.up_proj.weight": [128, 64],
        "model.layers.0.mlp.down_proj.weight": [64, 128],
        "model.norm.weight": [64],
    }
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    model_folder.write(folder / "model.safetensors", {name: ("BF16", shape) for name, shape in shapes.items()})
    return folder


@pytest.fixture
def python_as_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Gives a function that puts a shell script in the worker's place."""

    def replace(script: str) -> None:
        stand_in = tmp_path / "python"
        stand_in.write_text(f"#!/bin/sh\n{script}\n")
        stand_in.chmod(0o755)
        monkeypatch.setenv("OMNI_QUANTIZE_PYTHON", str(stand_in))

    return replace


@pytest.fixture
def command() -> Callable[..., list[str]]:
    return lambda *arguments: [sys.executable, "-m", "quantize", *map(str, arguments)]
