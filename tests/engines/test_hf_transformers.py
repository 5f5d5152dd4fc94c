from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from omni_app.engines import SPECS
from omni_app.engines.hf import folder, sizes
from omni_app.errors import EngineUnavailable
from omni_app.settings import Settings
from tests.server import model_folder

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-transformers" / "bin" / "python"
DRIVER = Path(__file__).with_name("transformers_driver.py")
VARIABLES = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
Drive = Callable[..., Any]


@pytest.fixture(scope="module")
def drive() -> Drive:
    """Gives a function that runs a step of the driver in the engine's environment and returns what it found."""
    if not (PYTHON.parent.parent / "ready").exists():
        pytest.skip("the environment with transformers is not built: make transformers-env")

    def run(step: str, *arguments: object) -> Any:
        command = [str(PYTHON), str(DRIVER), step, *map(str, arguments)]
        done = subprocess.run(command, env=VARIABLES, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def model(drive: Drive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3-Omni with every part. Read it, never change it."""
    made = tmp_path_factory.mktemp("models") / "tiny-omni"
    drive("make", made)
    return made


@pytest.fixture(scope="module")
def found(drive: Drive, model: Path) -> Any:
    """What one engine said and did in one process."""
    return drive("replies", model)


@pytest.fixture(scope="module")
def steps(drive: Drive, model: Path) -> Any:
    """What steps found that share a process; transformers' own quantizing comes before ours."""
    return drive("several", model, "upstream", "quantization:nf4", "quantization:fp4", "clip_patches", "silent")


def published() -> Iterator[tuple[str, list[int]]]:
    """The published model's parameters, its experts packed."""
    for pattern, shape in model_folder.SHAPES.items():
        count = re.search(r"\{(\d+)\}", pattern)
        for index in range(int(count[1]) if count else 1):
            yield re.sub(r"\{\d+\}", str(index), pattern), shape


@pytest.mark.parametrize(("precision", "gigabytes"), [("bf16", 70.5), ("nf4", 26.1), ("fp4", 26.1)])
def test_the_published_model_in_bytes(precision: sizes.Precision, gigabytes: float) -> None:
    made = sizes.estimate(published(), precision)
    assert set(made) == {
        "experts", "attention", "towers", "embeddings", "router and norms", "talker", "code2wav",
    }  # fmt: skip
    assert sum(made.values()) / 1e9 == pytest.approx(gigabytes, abs=0.1)


def test_four_bit_is_under_the_plans_30_gigabytes_with_room_to_work() -> None:
    from omni_app.engines.hf.sizes import estimate

    assert sum(estimate(published(), "nf4").values()) + 3e9 < 30e9


def test_choosing_this_engine_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from omni_app.engines import SPECS\n"
        "from omni_app.settings import Settings\n"
        "SPECS['transformers'].create(Settings()).status()\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert {"torch", "transformers", "bitsandbytes", "accelerate"} & set(done.stdout.split()) == set()


@pytest.mark.anyio
async def test_missing_packages_are_named_with_the_way_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni_app.engines.hf_transformers.find_spec", lambda name: None)
    engine = SPECS["transformers"].create(Settings(transformers_precision="nf4"))
    with pytest.raises(EngineUnavailable, match=r"torch, transformers, accelerate, bitsandbytes.*transformers-env"):
        await engine.start()
    await engine.close()


def config(where: Path, text: str) -> Path:
    where.mkdir()
    (where / "config.json").write_text(text)
    return where


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "no readable config.json"),
        ("[]", "no readable config.json"),
        ('{"model_type": "llama"}', "type llama, not Qwen3-Omni"),
        ('{"model_type": "qwen3_omni_moe", "quantization_config": {"quant_method": "fp8"}}', "quantized already"),
        ('{"model_type": "qwen3_omni_moe"}', "no weights"),
    ],
)
def test_a_folder_that_is_not_the_model(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(EngineUnavailable, match=why):
        folder.find(str(config(tmp_path / "m", text)), lambda line: None)


@pytest.mark.parametrize(
    ("asked", "why"),
    [("", "No model is named"), ("/no/such/folder", "no folder"), ("nobody/nothing", "no folder here")],
)
def test_a_model_that_is_not_there(asked: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EngineUnavailable, match=why):
        folder.find(asked, lambda line: None)


@pytest.mark.transformers
def test_transformers_own_bitsandbytes_leaves_the_experts_alone(steps: Any) -> None:
    """Why there is a quantizer of ours: when this fails, look whether transformers has learned it."""
    parts = steps["upstream"]
    assert "experts" not in parts
    assert {"attention", "towers", "talker", "code2wav"} <= set(parts)


@pytest.mark.transformers
@pytest.mark.parametrize("precision", ["nf4", "fp4"])
def test_four_bits(steps: Any, precision: str) -> None:
    made = steps[f"quantization:{precision}"]
    decoder = re.compile(
        r"thinker\.model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj\.weight|mlp\.experts\.\w+)"
    )
    assert len(made["quantized"]) == 2 * (4 + 2)
    assert all(decoder.fullmatch(name) for name in made["quantized"])
    assert made["changed"] == []
    assert made["in_memory"] == made["estimate"]
    assert made["bf16_in_memory"] == made["before"]
    assert made["in_memory"]["experts"] < 0.3 * made["before"]["experts"]
    assert made["experts"]["few"] < 0.01
    assert made["experts"]["many"] < 0.01
    assert 0.01 < made["experts"]["weight_error"] < (0.11 if precision == "nf4" else 0.15)
    assert made["logits"] > 0.9


@pytest.mark.transformers
def test_clips_become_the_patches_of_their_pictures(steps: Any) -> None:
    made = steps["clip_patches"]
    assert made["still"]
    still, moving, odd = (grid[0] for grid in made["grids"])
    assert still == moving
    assert odd == [2, *still[1:]]
    assert all(made["red_then_blue"])


@pytest.mark.transformers
def test_text_comes_in_pieces_and_speech_after_it(found: Any) -> None:
    assert found["ready"] == [False, True]
    assert sorted(found["voices"]) == ["aiden", "chelsie", "ethan"]
    assert "one answer at a time" in found["why"]
    spoken = found["spoken"]
    assert re.fullmatch(r"T+A+RR", spoken["kinds"])
    assert spoken["seconds"] > 0.1
    assert found["text"]["seconds"] == 0
    assert found["text"] == found["again"]
    assert found["text"]["tokens"] == 3
    assert found["text"]["end"] == "length"


@pytest.mark.transformers
def test_every_kind_of_input_reaches_the_model(found: Any) -> None:
    alone = found["text"]["prompt"]
    kinds = ("picture", "sound", "clip", "mute", "mixed")
    assert all(found[kind]["prompt"] > alone + 50 for kind in kinds)
    assert found["mixed"]["prompt"] > found["clip"]["prompt"] > found["mute"]["prompt"]
    assert len({found[kind]["text"] for kind in ("text", "picture", "sound", "clip")}) > 1
    assert found["marks"]["tokens"] == 3


@pytest.mark.transformers
def test_a_seed_repeats_an_answer(found: Any) -> None:
    first, same, other = (one["text"] for one in found["sampled"])
    assert first == same != other


@pytest.mark.transformers
def test_leaving_ends_the_work_and_the_next_one_gets_its_turn(found: Any) -> None:
    assert found["still"]
    assert "1 waits" in found["queued"]


@pytest.mark.transformers
def test_leaving_while_a_clip_is_read_ends_the_reading(found: Any) -> None:
    assert found["reading"] == [1, 1]


@pytest.mark.transformers
def test_what_cannot_be_asked(found: Any) -> None:
    assert found["voice"].startswith("BadRequest: There is no voice called nobody")
    assert found["tokens"].startswith("BadRequest: max_tokens is 0")
    assert re.match(r"BadRequest: The conversation has \d+ tokens, and the model takes 32768", found["long"])
    assert found["closed"] == "EngineUnavailable: The engine has been closed."


@pytest.mark.transformers
def test_the_voice_can_be_left_out(steps: Any) -> None:
    made = steps["silent"]
    assert not made["speaks"]
    assert "the voice is left out" in made["why"]
    assert "talker" not in made["why"]
    assert re.fullmatch(r"T*RR", made["reply"]["kinds"])


@pytest.mark.transformers
def test_damaged_weights_are_told_in_one_sentence(drive: Drive, model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    shard = sorted(broken.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:1000])
    assert re.match(r"CheckpointUnusable: The weights in .* cannot be loaded .* download the model again",
                    drive("trouble", broken))  # fmt: skip


@pytest.mark.transformers
def test_the_app_answers_in_text_and_sound(drive: Drive, model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    environment = {
        **VARIABLES, "OMNI_ENGINE": "transformers", "OMNI_TRANSFORMERS_MODEL": str(model), "OMNI_PORT": str(port),
        "OMNI_TRANSFORMERS_PRECISION": "nf4", "OMNI_DATA_DIR": str(tmp_path / "data"), "GRADIO_ANALYTICS_ENABLED": "0",
    }  # fmt: skip
    log = (tmp_path / "log").open("w")
    app = subprocess.Popen(
        [str(PYTHON), "app.py"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
    )
    try:
        assert app.stdout is not None
        assert any("Omni is at" in line for line in app.stdout), (tmp_path / "log").read_text()[-3000:]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=240) as client:
            body = {
                "model": "default", "modalities": ["text", "audio"], "max_tokens": 2, "voice": "chelsie",
                "messages": [{"role": "user", "content": "How are you?"}],
            }  # fmt: skip
            answer = client.post("/v1/chat/completions", json=body).json()
            listed = client.get("/v1/models").json()["data"][0]
    finally:
        app.terminate()
        app.wait(30)
        log.close()
    said = [choice["message"] for choice in answer["choices"]]
    assert any(message.get("content") for message in said)
    sound = next(message["audio"]["data"] for message in said if message.get("audio"))
    assert base64.b64decode(sound)[:4] == b"RIFF"
    assert listed["id"] == "tiny-omni"
    assert sorted(listed["voices"]) == ["aiden", "chelsie", "ethan"]
