"""SAGE's plugin against the real API over the builtin engine and its real small models."""

import contextlib
import socket
import threading
import wave
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette

from omni_app import engines
from omni_app.api import routes
from omni_app.media import Limits
from omni_app.runner import Runner
from omni_app.settings import Settings
from tests.irp_scripted import load

pytestmark = pytest.mark.models
ASSETS = Path(__file__).parents[1] / "assets"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = Settings(_env_file=None, engine="builtin", data_dir=tmp_path_factory.mktemp("builtin"))
    spec, because = engines.choose(settings)
    runner = Runner(spec.create(settings), because, 4)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        runner.start()
        yield
        await runner.close()

    app = Starlette(routes=routes(runner, settings, Limits.of(settings)), lifespan=lifespan)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        serving.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        warm = load().OmniIRP({"endpoint": url, "model_name": "default", "max_response_tokens": 1})
        assert not warm.get_response("Hi").startswith("[OmniIRP")  # the first answer waits for the models
        yield url
        server.should_exit = True
        serving.join()


@pytest.fixture
def plugin(address: str) -> Any:
    return load().OmniIRP({"endpoint": address, "max_response_tokens": 60, "max_iterations": 5})


def test_the_three_callers(plugin: Any) -> None:
    assert plugin.health_check() is True
    assert "Paris" in plugin.get_response("What is the capital of France?")
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    assert "Paris" in plugin.generate_response(turns, max_new_tokens=40, temperature=0.1)
    answer = plugin.get_chat_response(turns, tools=[{"type": "function", "function": {"name": "look"}}])
    assert "Paris" in answer["content"]
    assert answer["tool_calls"] == []
    assert answer["raw"]["eval_count"] > 0
    assert "Paris" in "".join(plugin.stream_response(turns))


def test_refinement_and_telemetry(plugin: Any) -> None:
    state, history = plugin.refine("What is the capital of France?", {"constraints": "one sentence"})
    assert plugin.get_halt_reason(history) in ("max_steps", "slope<eps")
    assert 2 < len(history) <= 5
    assert all(one.x["error"] == "" for one in history)
    told = plugin.emit_telemetry(state, history)
    assert 50 < told["budget"]["memory_mb"] < 4000
    assert 0 < told["E"] <= 0.5


def test_it_hears_and_speaks(plugin: Any) -> None:
    plugin.config["speech"] = True
    state = plugin.step(plugin.init_state({"audio": ASSETS / "question.wav"}, {}))
    assert state.x["error"] == ""
    with wave.open(state.x["speech"]) as wav:
        assert (wav.getnchannels(), wav.getsampwidth()) == (1, 2)
        assert wav.getnframes() / wav.getframerate() > 0.5


def test_what_the_server_cannot_read_is_told(plugin: Any) -> None:
    assert "[OmniIRP: The server did not answer (HTTP 400): " in plugin.get_response(
        {"image": b"no picture", "text": "?"}
    )
