import asyncio
import base64
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from omni_app.conversation import AudioDelta, Event, Message, Part, ReplyEnd, ReplyOptions, ReplyStats, TextDelta
from omni_app.engines.vllm_omni import PUBLISHED_VOICES, VllmOmniEngine
from omni_app.errors import BadRequest, EngineAtCapacity, EngineFailed, EngineUnavailable, MediaRejected, OmniError
from omni_app.settings import Settings
from tests.scripted import played

pytestmark = pytest.mark.anyio

PCM = bytes(range(256)) * 40
HI = [Message.of("user", "hi")]


def chunk(content: str, modality: str = "text", **fields: Any) -> bytes:
    choice = {"index": 0, "delta": {"role": "assistant", "content": content}, "finish_reason": None}
    return b"data: " + json.dumps({"modality": modality, "choices": [choice], **fields}).encode() + b"\n\n"


SOUND = chunk(base64.b64encode(PCM).decode(), "audio")
FINISH = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 20, "total_tokens": 25}}\n\n'
DONE = b"data: [DONE]\n\n"
ANSWER = chunk("so far") + SOUND + FINISH + USAGE + DONE
EVENTS = [TextDelta("so far"), AudioDelta(PCM, 24_000), ReplyStats(5, 20), ReplyEnd()]


class Death(Exception):
    """The server process dies: the connection breaks without a word."""


class ScriptedServer:
    """A vllm-omni server that does what the test says. `chat` is the answer to a chat request: bytes to stream, or a
    Response; in a stream an asyncio.Event is waited for and Death breaks the connection.
    """

    def __init__(self, *chat: Any) -> None:
        self.chat = chat or (ANSWER,)
        self.health: list[Response] = []
        self.models: Response = JSONResponse({"data": [{"id": "omni", "root": "/nowhere"}]})
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.left = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self.keys.append(request.headers.get("authorization"))
        await (await self._answer(request))(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if request.url.path == "/health":
            return self.health.pop(0) if self.health else JSONResponse({"status": "healthy"})
        if request.url.path == "/v1/models":
            return self.models
        self.bodies.append(await request.json())
        if isinstance(self.chat[0], Response):
            return self.chat[0]
        return StreamingResponse(played(self.chat, self.left), media_type="text/event-stream")


@pytest.fixture
async def connect(serve: Any) -> AsyncIterator[Callable[..., Any]]:
    """Serves a ScriptedServer and gives an engine that talks to it."""
    engines: list[VllmOmniEngine] = []

    async def start(server: ScriptedServer, **fields: Any) -> VllmOmniEngine:
        fields = {"endpoint": await serve(server), **fields}
        engines.append(VllmOmniEngine(Settings(_env_file=None, **fields), tries=3, pause_s=0.01))
        return engines[-1]

    yield start
    for engine in engines:
        await engine.close()


async def collect(source: AsyncIterable[Event], into: list[Event]) -> None:
    """Keeps what came before an error."""
    async for one in source:
        into.append(one)  # noqa: PERF401


async def outcome(engine: VllmOmniEngine, **options: Any) -> tuple[list[Event], OmniError | None]:
    events: list[Event] = []
    try:
        await collect(engine.reply(HI, ReplyOptions(**options)), events)
    except OmniError as error:
        return events, error
    return events, None


class TestStart:
    async def test_waits_while_the_server_loads(self, connect: Any) -> None:
        server = ScriptedServer()
        server.health = [JSONResponse({"status": "unhealthy"}, 503)] * 2
        engine = await connect(server)
        assert not engine.status().ready
        await engine.start()
        assert engine.status().ready
        assert engine.status().model == "omni"

    async def test_loading_for_too_long(self, connect: Any) -> None:
        server = ScriptedServer()
        server.health = [JSONResponse({"status": "unhealthy"}, 503)] * 3
        engine = await connect(server)
        with pytest.raises(EngineUnavailable, match="loading"):
            await engine.start()
        assert "loading" in engine.status().why

    async def test_nobody_listens(self, unused_address: str) -> None:
        engine = VllmOmniEngine(Settings(_env_file=None, endpoint=unused_address), tries=2, pause_s=0.01)
        with pytest.raises(EngineUnavailable, match=r"cannot be reached.*vllm serve <model> --omni") as caught:
            await engine.start()
        assert unused_address in str(caught.value)
        assert "OMNI_ENDPOINT" in engine.status().why
        with pytest.raises(EngineUnavailable, match="cannot be reached"):
            await anext(engine.reply(HI, ReplyOptions()))
        await engine.close()
        await engine.close()

    async def test_the_key_is_sent_and_asked_for(self, connect: Any) -> None:
        server = ScriptedServer()
        engine = await connect(server, api_key="s3cret")
        await engine.start()
        assert set(server.keys) == {"Bearer s3cret"}
        server.models = JSONResponse({"error": "Unauthorized"}, 401)
        with pytest.raises(EngineUnavailable, match="OMNI_API_KEY"):
            await engine.start()

    @pytest.mark.parametrize("endpoint", ["", "host:8091", "ftp://host", "http://", "http://ho st:1", "http://h:port"])
    async def test_an_address_that_is_none(self, endpoint: str) -> None:
        engine = VllmOmniEngine(Settings(_env_file=None, endpoint=endpoint), tries=1)
        with pytest.raises(EngineUnavailable, match="OMNI_ENDPOINT"):
            await engine.start()

    async def test_a_login_in_the_address_is_not_shown(self) -> None:
        engine = VllmOmniEngine(Settings(_env_file=None, endpoint="http://ann:pass@127.0.0.1:9/v1/"), tries=1)
        with pytest.raises(EngineUnavailable) as caught:
            await engine.start()
        assert "http://127.0.0.1:9 " in str(caught.value)
        assert "pass" not in str(caught.value) + engine.status().why

    @pytest.mark.parametrize("models", [{}, {"data": []}, {"data": [{"id": 3}]}, [], "omni"])
    async def test_a_server_of_another_kind(self, connect: Any, models: Any) -> None:
        server = ScriptedServer()
        server.models = JSONResponse(models)
        with pytest.raises(EngineUnavailable, match="lists no model"):
            await (await connect(server)).start()

    async def test_voices_of_a_model_folder(self, connect: Any, tmp_path: Path) -> None:
        config = {"talker_config": {"speaker_id": {"vivian": 1, "ryan": 2}}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        server = ScriptedServer()
        server.models = JSONResponse({"data": [{"id": "omni", "root": str(tmp_path)}]})
        engine = await connect(server)
        await engine.start()
        assert engine.status().voices == ("vivian", "ryan")
        _, error = await outcome(engine, voice="ethan")
        assert isinstance(error, BadRequest)
        assert "vivian, ryan" in str(error)
        assert (await outcome(engine, voice="Ryan"))[0] == EVENTS

    async def test_published_voices_are_offered_as_such(self, connect: Any) -> None:
        server = ScriptedServer()
        engine = await connect(server)
        await engine.start()
        assert engine.status().voices == PUBLISHED_VOICES
        assert "published" in engine.status().why
        assert (await outcome(engine, voice="new-one"))[1] is None
        assert server.bodies[0]["voice"] == "new-one"

    async def test_the_model_that_the_settings_name(self, connect: Any) -> None:
        server = ScriptedServer()
        server.models = JSONResponse({"data": [{"id": "first"}, {"id": "second"}]})
        engine = await connect(server, endpoint_model="second")
        await engine.start()
        assert engine.status().model == "second"
        engine = await connect(server, endpoint_model="third")
        with pytest.raises(EngineUnavailable, match="no model third"):
            await engine.start()


class TestReply:
    async def test_events_in_their_order(self, connect: Any) -> None:
        server = ScriptedServer()
        engine = await connect(server)
        assert await outcome(engine, max_tokens=30, temperature=0.3) == (EVENTS, None)
        assert server.bodies[0]["model"] == "omni"
        assert server.bodies[0]["audio"] == {"format": "pcm"}
        assert server.bodies[0]["max_tokens"] == 30
        assert engine.status().ready

    async def test_an_answer_cut_by_the_limit_says_so(self, connect: Any) -> None:
        engine = await connect(ScriptedServer())
        assert (await outcome(engine, max_tokens=20))[0][-1] == ReplyEnd("length")

    @pytest.mark.parametrize(("asked", "sent"), [(None, 100), (5000, 100), (20, 20)])
    async def test_the_limit_stays_within_the_context(self, connect: Any, asked: int | None, sent: int) -> None:
        server = ScriptedServer()
        server.models = JSONResponse({"data": [{"id": "omni", "max_model_len": 100}]})
        await outcome(await connect(server), max_tokens=asked)
        assert server.bodies[0]["max_tokens"] == sent

    async def test_slow_drip(self, connect: Any) -> None:
        pieces = [ANSWER[start : start + 3] for start in range(0, 300, 3)]
        assert await outcome(await connect(ScriptedServer(*pieces, ANSWER[300:]))) == (EVENTS, None)

    async def test_a_server_that_answers_in_one_body(self, connect: Any) -> None:
        message = {"content": "so far", "audio": {"data": base64.b64encode(PCM).decode()}}
        body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        body["usage"] = {"prompt_tokens": 5, "completion_tokens": 20}  # type: ignore[assignment]
        assert await outcome(await connect(ScriptedServer(JSONResponse(body)))) == (EVENTS, None)

    async def test_media_are_read_when_asked(self, connect: Any, tmp_path: Path) -> None:
        clip = tmp_path / "c.mp4"
        clip.write_bytes(b"clip")
        server = ScriptedServer()
        engine = await connect(server)
        part = Part("video", path=clip, mime="video/mp4", has_sound=True, name="holiday.mp4")
        messages = [Message.of("user", "what?", part)]
        assert [event async for event in engine.reply(messages, ReplyOptions())] == EVENTS
        assert server.bodies[0]["mm_processor_kwargs"] == {"use_audio_in_video": True}
        clip.unlink()
        with pytest.raises(MediaRejected, match=r"holiday\.mp4 cannot be read"):
            await anext(engine.reply(messages, ReplyOptions()))

    async def test_only_files_in_the_lent_folder_are_named(self, connect: Any, tmp_path: Path) -> None:
        lent, outside = tmp_path / "lent", tmp_path / "outside.wav"
        lent.mkdir()
        for file in (lent / "häuse 1.wav", outside):
            file.write_bytes(b"sound")
        (lent / "link.wav").symlink_to(outside)
        paths = [lent / "häuse 1.wav", outside, lent / "link.wav", lent / "../outside.wav"]
        parts = [Part("audio", path=path, mime="audio/wav") for path in paths]
        for folder in (lent, None):
            server = ScriptedServer()
            engine = await connect(server, local_media=folder)
            messages = [Message.of("user", "what?", *parts)]
            assert [event async for event in engine.reply(messages, ReplyOptions())] == EVENTS
            urls = [part["audio_url"]["url"] for part in server.bodies[0]["messages"][0]["content"][:-1]]
            named = [url for url in urls if url.startswith("file://")]
            assert named == ([(lent / "häuse 1.wav").as_uri()] if folder else [])
            assert [url for url in urls if url not in named] == ["data:audio/wav;base64,c291bmQ="] * (4 - len(named))

    async def test_a_lent_file_that_is_gone(self, connect: Any, tmp_path: Path) -> None:
        engine = await connect(ScriptedServer(), local_media=tmp_path)
        message = Message.of("user", "", Part("audio", path=tmp_path / "gone.wav", name="talk.wav"))
        with pytest.raises(MediaRejected, match=r"talk\.wav cannot be read"):
            await anext(engine.reply([message], ReplyOptions()))

    async def test_closing_closes_the_connection(self, connect: Any) -> None:
        server = ScriptedServer(chunk("so far"), asyncio.Event())
        reply = (await connect(server)).reply(HI, ReplyOptions())
        assert await anext(reply) == TextDelta("so far")
        await reply.aclose()
        await asyncio.wait_for(server.left.wait(), 5)

    async def test_cancelling_while_waiting_closes_it_too(self, connect: Any) -> None:
        server = ScriptedServer(chunk("so far"), asyncio.Event())
        engine, events, first = await connect(server), list[Event](), asyncio.Event()

        async def listen() -> None:
            async for event in engine.reply(HI, ReplyOptions()):
                events.append(event)
                first.set()

        listening = asyncio.create_task(listen())
        await first.wait()
        listening.cancel()
        await asyncio.wait_for(server.left.wait(), 5)
        assert events == [TextDelta("so far")]


class TestTrouble:
    @pytest.mark.parametrize(
        ("status", "body", "kind", "words"),
        [
            (400, {"error": {"message": "Invalid speaker", "code": 400}}, BadRequest, "Invalid speaker"),
            (400, {"detail": "'logprobs' must be a bool"}, BadRequest, "logprobs"),
            (401, {"error": "Unauthorized"}, EngineUnavailable, "OMNI_API_KEY"),
            (403, {"error": "Forbidden"}, EngineUnavailable, "OMNI_API_KEY"),
            (404, {"error": {"message": "The model `omni` does not exist."}}, EngineUnavailable, "does not exist"),
            (429, {"error": {"message": "Too many."}}, EngineAtCapacity, "Too many"),
            (500, {"error": {"message": "OOM", "request_id": "r", "error_stage_id": 1}}, EngineFailed, "OOM"),
            (500, {"detail": "boom"}, EngineFailed, "boom"),
            (500, {"error": {"message": "maximum context length is 9"}}, BadRequest, "start a new one"),
            (503, {"error": {"message": "Starting."}}, EngineUnavailable, "loading"),
            (307, {}, EngineFailed, "307"),
        ],
    )
    async def test_every_error_shape(self, connect: Any, status: int, body: Any, kind: type, words: str) -> None:
        events, error = await outcome(await connect(ScriptedServer(JSONResponse(body, status))))
        assert events == []
        assert type(error) is kind
        assert words in str(error)

    async def test_an_answer_that_is_no_chat(self, connect: Any) -> None:
        for response in (PlainTextResponse("hello"), Response("{", media_type="application/json")):
            _, error = await outcome(await connect(ScriptedServer(response)))
            assert isinstance(error, EngineFailed)

    async def test_silence(self, connect: Any) -> None:
        server = ScriptedServer(chunk("so far"), asyncio.Event())
        events, error = await outcome(await connect(server, silence_seconds=0.2))
        assert events == [TextDelta("so far")]
        assert isinstance(error, EngineFailed)
        assert "silent" in str(error)
        assert "0.2 seconds" in str(error)
        await asyncio.wait_for(server.left.wait(), 5)

    async def test_keep_alives_are_silence_too(self, connect: Any) -> None:
        server = ScriptedServer(chunk("so far"))
        stop = asyncio.Event()

        async def drip() -> AsyncIterator[bytes]:
            yield chunk("so far")
            while not stop.is_set():
                yield b": still here\n\n"
                await asyncio.sleep(0.02)

        server.chat = (StreamingResponse(drip(), media_type="text/event-stream"),)
        events, error = await outcome(await connect(server, silence_seconds=0.3))
        stop.set()
        assert events == [TextDelta("so far")]
        assert "silent" in str(error)

    async def test_a_listener_who_takes_time_is_no_silence(self, connect: Any) -> None:
        engine = await connect(ScriptedServer(), silence_seconds=0.2)
        events: list[Event] = []
        async for event in engine.reply(HI, ReplyOptions()):
            events.append(event)
            await asyncio.sleep(0.25)
        assert events == EVENTS

    @pytest.mark.parametrize(
        "rest",
        [
            [Death()],
            [SOUND[:1000], Death()],
            [b""],
            [SOUND[:1000]],
            [SOUND[:1000] + b"\n\n"],
            [chunk(base64.b64encode(PCM).decode()[:-2], "audio")],
            [b'data: {"error": {"message": "EngineCore died", "code": 500}}\n\n', DONE],
            [b'data: {"choices": \n\n'],
        ],
    )
    async def test_what_was_said_stays_and_retry_works(self, connect: Any, rest: list[Any]) -> None:
        server = ScriptedServer(chunk("so far"), *rest)
        engine = await connect(server)
        events, error = await outcome(engine)
        assert events == [TextDelta("so far")]
        assert isinstance(error, EngineFailed)
        server.chat = (ANSWER,)
        assert await outcome(engine) == (EVENTS, None)

    async def test_a_death_after_the_answer_was_over_is_none(self, connect: Any) -> None:
        server = ScriptedServer(chunk("so far"), FINISH, Death())
        assert await outcome(await connect(server)) == ([TextDelta("so far"), ReplyEnd()], None)

    async def test_another_model_took_the_address(self, connect: Any) -> None:
        server = ScriptedServer()
        engine = await connect(server)
        await engine.start()
        server.chat = (JSONResponse({"error": {"message": "The model `omni` does not exist."}}, 404),)
        server.models = JSONResponse({"data": [{"id": "omni-nvfp4"}]})
        _, error = await outcome(engine)
        assert "retry" in str(error)
        assert not engine.status().ready
        server.chat = (ANSWER,)
        assert await outcome(engine) == (EVENTS, None)
        assert server.bodies[-1]["model"] == "omni-nvfp4"
        assert engine.status().ready

    async def test_a_server_that_comes_up_later_is_found(self, connect: Any) -> None:
        server = ScriptedServer()
        server.health = [JSONResponse({}, 503)] * 3
        engine = await connect(server)
        with pytest.raises(EngineUnavailable):
            await engine.start()
        assert await outcome(engine) == (EVENTS, None)
        assert engine.status().ready
