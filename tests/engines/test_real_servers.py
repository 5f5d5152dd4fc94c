"""Engines that talk to a server, before real ones that run here: this app's own API, and llama.cpp's server."""

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from omni_app.api import routes
from omni_app.conversation import AudioDelta, ReplyEnd, ReplyOptions, ReplyStats, TextDelta
from omni_app.engines import SPECS
from omni_app.engines.builtin import assets
from omni_app.engines.endpoint import EndpointEngine
from omni_app.engines.openai_compatible import OpenAICompatibleEngine
from omni_app.media import Limits
from omni_app.runner import Runner
from omni_app.settings import Settings
from tests.conftest import Serve
from tests.engines.dialect_servers import HI, AnyEngine, outcome
from tests.scripted import ScriptedEngine

pytestmark = pytest.mark.anyio
BOTH = [(OpenAICompatibleEngine, "openai-compatible"), (EndpointEngine, "vllm-omni")]


@asynccontextmanager
async def api_over(engine: Any, folder: Path, serve: Serve) -> AsyncIterator[tuple[str, Runner]]:
    """Address of this app's API, once the engine answers."""
    settings = Settings(_env_file=None, data_dir=folder)
    runner = Runner(engine, "Chosen by the test.", 4)
    runner.start()
    async for _ in runner.reply(HI, ReplyOptions(speech=False, max_tokens=1)):
        pass
    yield await serve(Starlette(routes=routes(runner, settings, Limits.of(settings)))), runner
    await runner.close()


@asynccontextmanager
async def connected(kind: type[AnyEngine], address: str) -> AsyncIterator[AnyEngine]:
    engine = kind(Settings(_env_file=None, endpoint=address))
    await engine.start()
    yield engine
    await engine.close()


@pytest.mark.parametrize(("kind", "name"), BOTH)
async def test_own_api(serve: Serve, tmp_path: Path, kind: type[AnyEngine], name: str) -> None:
    async with api_over(ScriptedEngine(0.0), tmp_path, serve) as (address, _), connected(kind, address) as engine:
        status = engine.status()
        assert (status.name, status.model, status.voices) == (name, "echo", ("low", "high"))
        assert "copy of this app" in status.why
        events, error = await outcome(engine)
        assert error is None
        assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "echo: hi "
        assert sum(event.seconds for event in events if isinstance(event, AudioDelta)) == pytest.approx(0.4)


@pytest.mark.models
async def test_own_api_over_the_builtin_engine(serve: Serve, tmp_path: Path) -> None:
    builtin = SPECS["builtin"].create(Settings())
    async with (
        api_over(builtin, tmp_path, serve) as (address, runner),
        connected(OpenAICompatibleEngine, address) as engine,
    ):
        assert engine.status().modalities == runner.status().modalities
        assert engine.status().voices == runner.status().voices
        events, error = await outcome(engine, max_tokens=24)
    assert error is None
    assert {TextDelta, AudioDelta} <= {type(event) for event in events}
    assert isinstance(events[-1], ReplyEnd)


@pytest.fixture
def llama_cpp() -> Iterator[str]:
    """Address of llama.cpp's own server with the builtin engine's language model."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(assets.language_model(Settings()))
    with socket.create_server(("127.0.0.1", 0)) as free:
        params.hostnames, params.port = ["127.0.0.1"], free.getsockname()[1]
    params.n_ctx, params.n_parallel, params.ui, params.verbosity = 2048, 2, False, -1
    server = xllamacpp.Server(params)
    yield server.listening_address
    del server


@pytest.mark.models
async def test_llama_cpp(llama_cpp: str) -> None:
    async with connected(EndpointEngine, llama_cpp) as engine:
        status = engine.status()
        assert (status.name, status.model) == ("openai-compatible", "SmolLM2-135M-Instruct.Q4_1.gguf")
        assert (status.modalities, status.speaks) == ({"text"}, False)
        assert "llama.cpp at http" in status.why
        assert "image input is not supported" in status.why
        events, error = await outcome(engine, max_tokens=8)
    assert error is None
    assert any(isinstance(event, TextDelta) for event in events)
    assert isinstance(events[-2], ReplyStats)
    assert (events[-2].completion_tokens, events[-1]) == (8, ReplyEnd("length"))
