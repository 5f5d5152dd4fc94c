import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from omni_app.conversation import Message, Part, ReplyEnd, ReplyOptions, TextDelta
from omni_app.engines.endpoint import EndpointEngine
from omni_app.engines.openai_compatible import OpenAICompatibleEngine
from omni_app.errors import BadRequest, EngineAtCapacity, EngineFailed, EngineUnavailable
from omni_app.media.samples import sample
from omni_app.settings import Settings
from tests.engines.dialect_servers import (
    DONE,
    HI,
    REPLY,
    TEXT_REPLY,
    AnyEngine,
    EdgeLLM,
    OpenAIAudio,
    PlainVLLM,
    ScriptedServer,
    SGLangOmni,
    delta,
    outcome,
    sse,
)

pytestmark = pytest.mark.anyio

SO_FAR = sse(delta(content="so far"))


@pytest.fixture
async def connect(serve: Any) -> AsyncIterator[Callable[..., Any]]:
    """Serves an app and gives a started engine that talks to it."""
    engines: list[AnyEngine] = []

    async def start(
        server: Any,
        kind: type[AnyEngine] = OpenAICompatibleEngine,
        started: bool = True,
        probe_s: float = 2.0,
        **fields: Any,
    ) -> AnyEngine:
        settings = Settings(_env_file=None, **{"endpoint": await serve(server), **fields})
        probing = {"probe_s": probe_s} if kind is OpenAICompatibleEngine else {}
        engines.append(kind(settings, tries=2, pause_s=0.01, **probing))
        if started:
            await engines[-1].start()
        return engines[-1]

    yield start
    for engine in engines:
        await engine.close()


class TestDialects:
    @pytest.mark.parametrize(
        ("server", "name", "kinds", "voices"),
        [
            (SGLangOmni(), "SGLang-Omni", {"text", "image", "audio", "video"}, ()),
            (EdgeLLM(kinds=("image", "audio")), "TensorRT Edge-LLM", {"text", "image", "audio"}, ("Ryan", "Vivian")),
            (OpenAIAudio(), "OpenAI", {"text", "audio"}, ("alloy", "ash")),
        ],
    )
    async def test_a_server_that_speaks(
        self, connect: Any, server: ScriptedServer, name: str, kinds: set[str], voices: tuple[str, ...]
    ) -> None:
        engine = await connect(server)
        status = engine.status()
        assert status.ready
        assert status.speaks
        assert status.modalities == kinds
        assert status.voices[: len(voices)] == voices
        assert f"{name} at http" in status.why
        assert await outcome(engine, max_tokens=40, temperature=0.3, seed=1) == (REPLY, None)
        assert server.bodies[-1]["modalities"] == ["text", "audio"]
        assert 40 in (server.bodies[-1].get("max_tokens"), server.bodies[-1].get("max_completion_tokens"))

    @pytest.mark.parametrize(
        ("server", "why"),
        [
            (SGLangOmni(speaks=False), "Asked for speech, it sent none"),
            (EdgeLLM(speaks=False), "its model has no voice"),
            (PlainVLLM(), "vLLM answers with text only"),
            (PlainVLLM(), "It refuses pictures (m is not a multimodal model), sound (m is"),
        ],
    )
    async def test_a_server_that_does_not_speak(self, connect: Any, server: ScriptedServer, why: str) -> None:
        engine = await connect(server)
        assert not engine.status().speaks
        assert why in engine.status().why
        assert await outcome(engine) == (TEXT_REPLY, None)
        assert "modalities" not in server.bodies[-1]
        assert "audio" not in server.bodies[-1]

    async def test_a_description_saves_the_probes(self, connect: Any) -> None:
        server = EdgeLLM()
        await connect(server)
        assert server.bodies == []

    async def test_an_older_edge_llm_without_capabilities_is_probed(self, connect: Any) -> None:
        server = EdgeLLM(kinds=("image",))
        server.pages["/health"] = {"status": "healthy"}
        engine = await connect(server)
        assert engine.status().modalities == {"text", "image"}
        assert engine.status().speaks

    async def test_voices(self, connect: Any) -> None:
        server = EdgeLLM()
        engine = await connect(server)
        _, error = await outcome(engine, voice="nobody")
        assert isinstance(error, BadRequest)
        assert "Ryan, Vivian" in str(error)
        assert await outcome(engine, voice="vivian") == (REPLY, None)
        assert server.bodies[-1]["audio"] == {"format": "pcm16", "voice": "Vivian"}

    async def test_media_go_along_as_every_server_knows_them(self, connect: Any, tmp_path: Path) -> None:
        server = SGLangOmni()
        engine = await connect(server)
        parts = [sample(kind, tmp_path) for kind in ("image", "audio", "video")]
        assert (await outcome(engine, [Message.of("user", "what?", *parts)]))[1] is None
        picture, sound, clip, text = server.bodies[-1]["messages"][0]["content"]
        assert picture["image_url"]["url"].startswith("data:image/png;base64,")
        assert sound["input_audio"]["format"] == "wav"
        assert base64.b64decode(sound["input_audio"]["data"]) == (tmp_path / "quiet.wav").read_bytes()
        assert clip["video_url"]["url"].startswith("data:video/mp4;base64,")
        assert text == {"type": "text", "text": "what?"}

    async def test_what_it_does_not_take_is_refused_before_it_is_sent(self, connect: Any, tmp_path: Path) -> None:
        server = PlainVLLM()
        engine = await connect(server)
        asked = len(server.bodies)
        picture = Part("image", path=tmp_path / "gone.png", name="cat.png")
        _, error = await outcome(engine, [Message.of("user", "what?", picture)])
        assert isinstance(error, BadRequest)
        assert "does not take pictures (cat.png), only text" in str(error)
        assert len(server.bodies) == asked

    async def test_an_earlier_picture_becomes_a_note(self, connect: Any, tmp_path: Path) -> None:
        server = PlainVLLM()
        engine = await connect(server)
        earlier = Message.of("user", "look", Part("image", path=tmp_path / "gone.png"))
        history = [earlier, Message.of("assistant", "A cat."), *HI]
        assert (await outcome(engine, history))[1] is None
        said = json.dumps(server.bodies[-1]["messages"])
        assert "[pictures, which you cannot perceive]" in said
        assert "A cat." in said

    async def test_the_key_is_sent(self, connect: Any) -> None:
        server = SGLangOmni()
        await connect(server, api_key="s3cret")
        assert server.keys == {"Bearer s3cret"}

    async def test_a_model_is_chosen_by_name(self, connect: Any) -> None:
        server = PlainVLLM()
        server.pages["/v1/models"]["data"].append({"id": "other", "owned_by": "vllm", "max_model_len": 100})
        assert "1 more of its models" in (await connect(server)).status().why
        engine = await connect(server, endpoint_model="other")
        assert engine.status().model == "other"
        await outcome(engine)
        assert server.bodies[-1]["model"] == "other"
        assert server.bodies[-1]["max_tokens"] == 50
        with pytest.raises(EngineUnavailable, match=r"no model gpt-9 .*It has: m, other"):
            await connect(server, endpoint_model="gpt-9")


class TestStart:
    @pytest.mark.parametrize(
        ("models", "words"),
        [
            (HTMLResponse("<html>It works!</html>"), "not JSON"),
            (JSONResponse({"data": []}), "lists no model"),
            (JSONResponse({"error": "Unauthorized"}, 401), "OMNI_API_KEY"),
            (JSONResponse({"detail": "Not Found"}, 404), "HTTP 404"),
            (PlainTextResponse("loading", 503), "loading"),
            (HTMLResponse("<html>Bad Gateway</html>", 502), "HTTP 502"),
        ],
    )
    async def test_a_server_that_cannot_be_used(self, connect: Any, models: Response, words: str) -> None:
        server = SGLangOmni()
        server.pages["/v1/models"] = models
        engine = await connect(server, started=False)
        with pytest.raises(EngineUnavailable, match=words):
            await engine.start()
        assert not engine.status().ready
        assert words in engine.status().why

    async def test_nobody_listens(self, unused_address: str) -> None:
        engine = OpenAICompatibleEngine(Settings(_env_file=None, endpoint=unused_address), tries=1)
        with pytest.raises(EngineUnavailable, match=r"cannot be reached.*OMNI_ENDPOINT"):
            await engine.start()
        await engine.close()
        await engine.close()

    async def test_a_model_that_does_not_chat(self, connect: Any) -> None:
        server = PlainVLLM()
        server.script = JSONResponse({"error": {"message": "m is an embedding model"}}, 400)
        with pytest.raises(EngineUnavailable, match=r"embedding model.*OMNI_ENDPOINT_MODEL"):
            await connect(server)

    async def test_a_speech_model_does_not_chat(self, connect: Any) -> None:
        server = EdgeLLM()
        server.pages["/health"]["capabilities"]["chat"] = False
        with pytest.raises(EngineUnavailable, match="does not chat"):
            await connect(server)

    async def test_a_probe_without_an_answer_ends(self, connect: Any) -> None:
        server = PlainVLLM()
        server.script = [asyncio.Event()]
        engine = await connect(server, started=False, probe_s=0.2)
        with pytest.raises(EngineUnavailable, match="does not answer in time"):
            await engine.start()

    async def test_a_busy_server_is_given_the_benefit_of_the_doubt(self, connect: Any) -> None:
        server = PlainVLLM()
        server.script = JSONResponse({"error": {"message": "Too many."}}, 429)
        assert (await connect(server)).status().modalities == {"text", "image", "audio", "video"}


class TestTrouble:
    @pytest.mark.parametrize(
        ("script", "kind", "words"),
        [
            (JSONResponse({"error": {"message": "no such thing"}}, 400), BadRequest, "no such thing"),
            (JSONResponse({"error": "Unauthorized"}, 401), EngineUnavailable, "OMNI_API_KEY"),
            (JSONResponse({"error": "Forbidden"}, 403), EngineUnavailable, "OMNI_API_KEY"),
            (JSONResponse({"error": {"message": "unknown model"}}, 404), EngineUnavailable, "asked for the model m"),
            (JSONResponse({"error": {"message": "Too many."}}, 429), EngineAtCapacity, "Too many"),
            (HTMLResponse("<html>Internal Server Error</html>", 500), EngineFailed, "HTTP 500"),
            (HTMLResponse("<html>Bad Gateway</html>", 502), EngineUnavailable, "HTTP 502"),
            (Response("{", media_type="application/json"), EngineFailed, "not JSON"),
            (HTMLResponse("<html>Please log in</html>"), EngineFailed, "closed the connection"),
        ],
    )
    async def test_no_answer_at_all(self, connect: Any, script: Response, kind: type, words: str) -> None:
        server = SGLangOmni()
        engine = await connect(server)
        server.script = script
        events, error = await outcome(engine)
        assert events == []
        assert type(error) is kind
        assert words in str(error)
        assert "<html>" not in str(error)
        server.script = None
        assert await outcome(engine) == (REPLY, None)

    @pytest.mark.parametrize(
        ("rest", "words"),
        [
            ([ConnectionError("the server died")], "closed the connection in the middle"),
            ([], "closed the connection in the middle"),
            ([sse({"error": {"message": "CUDA error", "code": 500}}), DONE], "CUDA error"),
            ([b'data: {"choices": [{"del\n\n'], "not valid JSON"),
            ([b"data: <html></html>\n\n"], "not valid JSON"),
            ([sse(delta(audio={"data": "*"}))], "damaged"),
            ([sse(delta(audio={"data": "AAAA", "format": "mp3"}))], "format that was not asked for"),
            ([asyncio.Event()], "silent: nothing came for 0.3 seconds"),
        ],
    )
    async def test_the_text_so_far_stays(self, connect: Any, rest: list[Any], words: str) -> None:
        server = SGLangOmni()
        engine = await connect(server, silence_seconds=0.3)
        server.script = [SO_FAR, *rest]
        events, error = await outcome(engine)
        assert events == [TextDelta("so far")]
        assert isinstance(error, EngineFailed)
        assert words in str(error)

    async def test_an_end_without_done_is_one(self, connect: Any) -> None:
        server = SGLangOmni()
        engine = await connect(server)
        server.script = [SO_FAR, sse(delta("length"))]
        assert await outcome(engine) == ([TextDelta("so far"), ReplyEnd("length")], None)

    async def test_closing_closes_the_connection(self, connect: Any) -> None:
        server = SGLangOmni()
        engine = await connect(server)
        server.script = [SO_FAR, asyncio.Event()]
        reply = engine.reply(HI, ReplyOptions())
        assert await anext(reply) == TextDelta("so far")
        await reply.aclose()
        await asyncio.wait_for(server.left.wait(), 5)


class TestEndpoint:
    """OMNI_ENDPOINT alone: the server is asked what it is."""

    @pytest.mark.parametrize(
        ("server", "engine", "why"),
        [
            (SGLangOmni(), "openai-compatible", "SGLang-Omni at http"),
            (EdgeLLM(), "openai-compatible", "TensorRT Edge-LLM at http"),
            (PlainVLLM(), "openai-compatible", "vLLM at http"),
        ],
    )
    async def test_the_right_engine_and_its_reason(
        self, connect: Any, server: ScriptedServer, engine: str, why: str
    ) -> None:
        started = await connect(server, EndpointEngine)
        assert started.status().name == engine
        assert why in started.status().why
        assert (await outcome(started))[1] is None

    @pytest.mark.parametrize(
        "page", [("/metrics", PlainTextResponse("# HELP vllm_omni:requests_success x\n")), ("/v1/audio/voices", {})]
    )
    async def test_vllm_omni_is_told_from_vllm(self, connect: Any, page: tuple[str, Any]) -> None:
        server = PlainVLLM()
        del server.pages["/metrics"]
        server.pages |= dict([page])
        assert (await connect(server, EndpointEngine)).status().name == "vllm-omni"

    async def test_the_server_comes_up_later(self, connect: Any) -> None:
        server = SGLangOmni()
        up, server.pages["/v1/models"] = server.pages["/v1/models"], PlainTextResponse("", 503)
        engine = await connect(server, EndpointEngine, started=False)
        with pytest.raises(EngineUnavailable, match="loading"):
            await engine.start()
        assert engine.status().name == "endpoint"
        assert "loading" in engine.status().why
        server.pages["/v1/models"] = up
        assert await outcome(engine) == (REPLY, None)
        assert engine.status().name == "openai-compatible"
