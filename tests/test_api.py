import asyncio
import base64
import io
import json
import os
import wave
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request

from omni_app import access
from omni_app.api import routes
from omni_app.conversation import AudioDelta, Event, Heard, Message, Part, ReplyEnd, ReplyOptions, ReplyStats, TextDelta
from omni_app.engines.base import EngineStatus
from omni_app.engines.vllm_omni import VllmOmniEngine
from omni_app.errors import BadRequest, EngineAtCapacity, EngineFailed, EngineUnavailable, OmniError
from omni_app.media import Limits
from omni_app.settings import Settings

pytestmark = pytest.mark.anyio

PCM = bytes(range(256)) * 40
REPLY: tuple[Event, ...] = (
    TextDelta("Grüß "),
    AudioDelta(PCM, 24_000),
    TextDelta("Gott! 你好 🎈"),
    AudioDelta(PCM[:3000], 24_000),
    ReplyStats(11, 7),
    ReplyEnd(),
)
HELLO = [{"role": "user", "content": "hello"}]
JSON = {"content-type": "application/json"}


class FakeEngine:
    """Plays a script: events are said, errors raised, asyncio.Events waited for. It is its own runner."""

    def __init__(self, *script: Event | Exception | asyncio.Event) -> None:
        self.script = script or REPLY
        self.asked: list[tuple[list[Message], ReplyOptions]] = []
        self.saw: list[bytes] = []
        self.begun = asyncio.Event()
        self.closed = asyncio.Event()
        self.ready = True
        self.speaks = True

    async def start(self) -> None:
        self.ready = True

    async def close(self) -> None:
        self.ready = False

    def status(self) -> EngineStatus:
        why = "It plays its script." if self.ready else "Loading the model."
        kinds = frozenset({"text", "image", "audio"})
        return EngineStatus("fake", "tiny-omni", self.ready, why, ("Ethan", "Chelsie"), kinds, self.speaks)

    async def reply(self, messages: Sequence[Message], options: ReplyOptions) -> AsyncGenerator[Event, None]:
        self.asked.append((list(messages), options))
        self.saw += [part.path.read_bytes() for one in messages for part in one.media if part.path]
        self.begun.set()
        try:
            for step in self.script:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    yield step
        finally:
            self.closed.set()

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.asked[-1][0][-1].parts


class EchoEngine(FakeEngine):
    """Says back what it was told, letting others speak between two letters."""

    async def reply(self, messages: Sequence[Message], options: ReplyOptions) -> AsyncGenerator[Event, None]:
        for letter in messages[-1].text:
            await asyncio.sleep(0)
            yield TextDelta(letter)
        yield ReplyEnd()


def settings(**fields: Any) -> Settings:
    return Settings(_env_file=None, **fields)


@pytest.fixture
def api(serve: Any, tmp_path: Path) -> Any:
    """Serves the API over an engine and gives a client of it; `fields` are settings."""

    async def start(engine: FakeEngine, key: str = "", **fields: Any) -> httpx.AsyncClient:
        chosen = settings(**{"data_dir": tmp_path / "data", **fields})
        address = await serve(Starlette(routes=routes(engine, chosen, Limits.of(chosen))))
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.AsyncClient(base_url=address, headers=headers, timeout=20, trust_env=False)

    return start


def stock(client: httpx.AsyncClient, key: str = "none") -> openai.AsyncOpenAI:
    base = f"{client.base_url}".rstrip("/") + "/v1"
    return openai.AsyncOpenAI(base_url=base, api_key=key, max_retries=0, http_client=httpx.AsyncClient(trust_env=False))


async def ask(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/chat/completions", json={"messages": HELLO, **fields})


def said(response: httpx.Response, status: int) -> str:
    """The message of an OpenAI-shaped error."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == status
    return str(error["message"])


async def collect(source: AsyncIterable[Any], into: list[Any]) -> None:
    """Keeps what came before an error."""
    async for one in source:
        into.append(one)  # noqa: PERF401


def arriving(body: bytes) -> Request:
    """A request whose body comes in pieces."""
    pieces = [body[at : at + 2**16] for at in range(0, len(body), 2**16)]
    messages = iter([{"type": "http.request", "body": one, "more_body": True} for one in pieces])

    async def receive() -> Any:
        return next(messages, {"type": "http.request"})

    return Request({"type": "http", "headers": [(b"content-type", b"application/json")]}, receive)


class RawCaller:
    """Sends a request body as slowly as it likes, and hears the answer while it still sends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def of(cls, client: httpx.AsyncClient, length: int) -> "RawCaller":
        caller = cls(*await asyncio.open_connection(client.base_url.host, client.base_url.port))
        head = f"host: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close"
        caller.send(f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n\r\n".encode())
        return caller

    def send(self, piece: bytes) -> None:
        self._writer.write(piece)

    async def answer(self, status: int = 0) -> str:
        answer = (await asyncio.wait_for(self._reader.read(), 20)).decode()
        self._writer.close()
        assert not status or answer.startswith(f"HTTP/1.1 {status} "), answer
        return answer


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (48, 32), (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


def wav(seconds: float = 0.5) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 16_000, 0, "NONE", ""))
        out.writeframes(b"\x10\x00\x20\x01" * int(8_000 * seconds))
    return file.getvalue()


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


class TestStockClient:
    async def test_streams_text_and_speech(self, api: Any) -> None:
        client = stock(await api(FakeEngine()))
        text, pcm, ends = "", b"", []
        stream = await client.chat.completions.create(
            model="tiny-omni", messages=HELLO, stream=True, stream_options={"include_usage": True},
            extra_body={"modalities": ["text", "audio"], "audio": {"format": "pcm"}, "voice": "ethan"},
        )  # fmt: skip
        usage = None
        async for chunk in stream:
            usage = chunk.usage if not chunk.choices else usage
            for choice in chunk.choices:
                if chunk.modality == "audio":
                    pcm += base64.b64decode(choice.delta.content)
                else:
                    text += choice.delta.content or ""
                ends += [choice.finish_reason] if choice.finish_reason else []
        assert text == "Grüß Gott! 你好 🎈"
        assert pcm == PCM + PCM[:3000]
        assert ends == ["stop"]
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (11, 7, 18)

    async def test_one_body(self, api: Any) -> None:
        done = await stock(await api(FakeEngine())).chat.completions.create(model="default", messages=HELLO)
        message = done.choices[0].message
        assert message.content == message.audio.transcript == "Grüß Gott! 你好 🎈"
        with wave.open(io.BytesIO(base64.b64decode(message.audio.data))) as sound:
            assert sound.getframerate() == 24_000
            assert sound.readframes(sound.getnframes()) == PCM + PCM[:3000]
        assert done.choices[0].finish_reason == "stop"
        assert done.usage.total_tokens == 18

    async def test_text_alone_reads_like_any_other_model(self, api: Any) -> None:
        engine = FakeEngine(Heard("hm"), TextDelta("plain"), ReplyEnd("length"))
        stream = await stock(await api(engine)).chat.completions.create(
            model="fake", messages=HELLO, stream=True, modalities=["text"], max_completion_tokens=3, seed=5
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "plain"
        assert chunks[-1].choices[0].finish_reason == "length"
        assert chunks[0].heard == "hm"
        assert engine.asked[0][1] == ReplyOptions(speech=False, max_tokens=3, seed=5)

    async def test_models(self, api: Any) -> None:
        (model,) = (await stock(await api(FakeEngine())).models.list()).data
        assert model.id == "tiny-omni"
        assert model.voices == ["Ethan", "Chelsie"]
        assert model.modalities == ["audio", "image", "text"]

    async def test_errors_are_the_clients_own(self, api: Any) -> None:
        client = stock(await api(FakeEngine(TextDelta("so far"), EngineFailed("The talker died."))))
        with pytest.raises(openai.NotFoundError, match='Served: "tiny-omni", "fake", "default"'):
            await client.chat.completions.create(model="gpt-x", messages=HELLO)
        stream = await client.chat.completions.create(model="fake", messages=HELLO, stream=True)
        chunks: list[Any] = []
        with pytest.raises(openai.APIError, match=r"The talker died\."):
            await collect(stream, chunks)
        assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "so far"


class TestMedia:
    async def test_media_reach_the_engine_and_are_gone_after(self, api: Any) -> None:
        engine = FakeEngine()
        parts = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64(png())}"}},
            {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{b64(wav())}"}},
            {"type": "input_audio", "input_audio": {"data": b64(wav(1)), "format": "wav"}},
            {"type": "text", "text": "what is this?"},
        ]
        response = await ask(await api(engine), messages=[{"role": "user", "content": parts}])
        assert response.status_code == 200, response.text
        assert [part.kind for part in engine.parts] == ["image", "audio", "audio", "text"]
        assert engine.saw[0][:2] == b"\xff\xd8"
        assert engine.saw[2][:4] == b"RIFF"
        assert not any(part.path.parent.exists() for part in engine.parts if part.path)

    async def test_what_a_killed_server_left_is_swept_at_the_next_start(self, api: Any, tmp_path: Path) -> None:
        requests = tmp_path / "data" / "requests"
        killed, running = requests / str(2**30) / "tmp1", requests / str(os.getppid()) / "tmp2"
        for folder in (killed, running):
            folder.mkdir(parents=True)
            (folder / "media.wav").write_bytes(wav())
        engine = FakeEngine()
        client = await api(engine)
        assert not killed.exists()
        assert (running / "media.wav").exists()
        sound = {"type": "input_audio", "input_audio": {"data": b64(wav()), "format": "wav"}}
        await ask(client, messages=[{"role": "user", "content": [sound]}])
        assert engine.parts[0].path
        assert engine.parts[0].path.is_relative_to(requests)

    @pytest.mark.parametrize(
        ("part", "words"),
        [
            ({"type": "image_url", "image_url": {"url": "https://host/cat.png"}}, "never fetched"),
            ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "never fetched"),
            ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "image"),
            ({"type": "image_url", "image_url": {"url": "data:image/png;base64,A"}}, "base64"),
            ({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64(wav())}"}}, "audio_url"),
            ({"type": "input_audio", "input_audio": {"data": "%%%", "format": "wav"}}, "base64"),
            ({"type": "input_audio", "input_audio": {"data": b64(b"RIFF"), "format": "wav"}}, "audio"),
        ],
    )
    async def test_what_cannot_be_taken(self, api: Any, part: dict[str, Any], words: str) -> None:
        engine = FakeEngine()
        assert words in said(await ask(await api(engine), messages=[{"role": "user", "content": [part]}]), 400)
        assert not engine.asked

    async def test_limits_are_named(self, api: Any) -> None:
        client = await api(FakeEngine(), max_media_parts=1, max_text_chars=10, max_upload_mb=1)
        picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64(png())}"}}
        two = [{"role": "user", "content": [picture, picture]}]
        assert "at most 1" in said(await ask(client, messages=two), 400)
        assert "at most 10" in said(await ask(client, messages=[{"role": "user", "content": "x" * 11}]), 400)

    async def test_a_body_too_large_is_refused_unread(self, api: Any) -> None:
        client = await api(FakeEngine(), max_media_parts=8, max_upload_mb=1)

        async def endless() -> AsyncGenerator[bytes, None]:
            for _ in range(20):
                yield b" " * 2**19

        declared = {"content-type": "application/json", "content-length": str(10 * 2**20)}
        assert "MB" in said(await client.post("/v1/chat/completions", content=endless(), headers=declared), 413)
        chunked = {"content-type": "application/json"}
        assert "MB" in said(await client.post("/v1/chat/completions", content=endless(), headers=chunked), 413)

    async def test_a_body_that_never_ends_is_dropped(self, api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(access, "READ_SECONDS", 0.05)
        caller = await RawCaller.of(await api(FakeEngine()), 100)
        caller.send(b"{")
        assert "did not arrive" in await caller.answer(408)

    async def test_large_bodies_of_others_leave_room_for_questions(self) -> None:
        inbox = access.Inbox(most_bytes := 10**6)
        large = b" " * (most_bytes - 1) + b"1"
        async with inbox.json(arriving(large)), inbox.json(arriving(large)):
            with pytest.raises(access.NoRoom, match="again in a moment"):
                await inbox.json(arriving(large)).__aenter__()
            async with inbox.json(arriving(b"2")) as question:
                assert question == 2
        async with inbox.json(arriving(large)) as value:
            assert value == 1

    async def test_so_many_bodies_at_one_time(self, api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(access, "BODIES_AT_ONCE", 1)
        engine = FakeEngine(go_on := asyncio.Event(), ReplyEnd())
        client = await api(engine)
        first = asyncio.create_task(ask(client))
        await engine.begun.wait()
        assert "again in a moment" in said(await ask(client), 429)
        go_on.set()
        assert (await first).status_code == 200
        assert (await ask(client)).status_code == 200


class TestRefusals:
    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000, b'{"messages": "\\ud800"}']
    )
    async def test_no_bad_body_is_a_500(self, api: Any, content: bytes) -> None:
        headers = {"content-type": "application/json"}
        said(await (await api(FakeEngine())).post("/v1/chat/completions", content=content, headers=headers), 400)

    async def test_only_json_is_read(self, api: Any) -> None:
        client = await api(FakeEngine())
        response = await client.post("/v1/chat/completions", content=json.dumps({"messages": HELLO}))
        assert "Content-Type" in said(response, 400)

    async def test_voices(self, api: Any) -> None:
        engine = FakeEngine()
        client = await api(engine)
        assert "Ethan, Chelsie" in said(await ask(client, voice="alloy"), 400)
        assert (await ask(client, speaker="CHELSIE")).status_code == 200
        assert engine.asked[0][1].voice == "Chelsie"

    async def test_an_engine_without_speech(self, api: Any) -> None:
        engine = FakeEngine(TextDelta("mute"), ReplyEnd())
        engine.speaks = False
        client = await api(engine)
        assert "does not speak" in said(await ask(client, modalities=["audio"]), 400)
        assert (await ask(client)).json()["choices"][0]["message"]["content"] == "mute"

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("POST", "/v1/audio/speech"),
            ("POST", "/v1/completions"),
            ("GET", "/v1/chat/completions"),
            ("GET", "/v1/x/y"),
        ],
    )
    async def test_what_is_not_offered_points_to_chat(self, api: Any, method: str, path: str) -> None:
        response = await (await api(FakeEngine())).request(method, path)
        assert "POST /v1/chat/completions" in said(response, 404)

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (BadRequest("No."), 400),
            (EngineAtCapacity("Full."), 429),
            (EngineUnavailable("Loading."), 503),
            (EngineFailed("Broke."), 500),
        ],
    )
    @pytest.mark.parametrize("stream", [True, False])
    async def test_what_fails_before_the_first_word_has_its_status(
        self, api: Any, error: OmniError, status: int, stream: bool
    ) -> None:
        assert said(await ask(await api(FakeEngine(error)), stream=stream), status) == str(error)

    async def test_what_fails_in_mid_stream_is_a_chunk(self, api: Any) -> None:
        response = await ask(await api(FakeEngine(TextDelta("so far"), EngineUnavailable("Gone."))), stream=True)
        assert response.status_code == 200
        *_, error, done = response.text.strip().split("\n\n")
        assert json.loads(error.removeprefix("data: "))["error"]["message"] == "Gone."
        assert done == "data: [DONE]"

    @pytest.mark.parametrize("stream", [True, False])
    async def test_what_nobody_foresaw_is_told_in_our_words(self, api: Any, stream: bool) -> None:
        client = await api(FakeEngine(ZeroDivisionError("secret detail")))
        words = said(await ask(client, stream=stream), 500)
        assert "log" in words
        assert "secret" not in words


class TestAccess:
    async def test_the_key(self, api: Any) -> None:
        client = await api(FakeEngine(), serve_key="s3cret", auth="ann:pass")
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic " + b64(b"ann:pass")}):
            response = await client.post("/v1/chat/completions", json={"messages": HELLO}, headers=headers)
            assert "Bearer" in said(response, 401)
            assert response.headers["www-authenticate"] == "Bearer"
        assert (await client.get("/v1/models")).status_code == 401
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/health")).status_code == 200
        assert (await stock(client, "s3cret").models.list()).data[0].id == "tiny-omni"

    async def test_the_login_of_the_page_when_there_is_no_key(self, api: Any) -> None:
        client = await api(FakeEngine(), auth="ann:pässword")
        assert (await client.get("/v1/models", auth=("ann", "pässword"))).status_code == 200
        for wrong in ({"authorization": "Basic ???"}, {"authorization": "Bearer pässword".encode()}, {}):
            response = await client.get("/v1/models", headers=wrong)
            said(response, 401)
            assert response.headers["www-authenticate"].startswith("Basic")

    async def test_other_sites_get_no_leave(self, api: Any) -> None:
        client = await api(FakeEngine())
        origin = {"origin": "https://elsewhere.example", "access-control-request-method": "POST"}
        preflight = await client.options("/v1/chat/completions", headers=origin)
        assert preflight.status_code == 405
        response = await client.get("/v1/models", headers=origin)
        assert "other sites" in said(response, 403)
        assert not any(name.startswith("access-control") for name in {*preflight.headers, *response.headers})
        for foreign in ("null", "http://127.0.0.1:1", "http://["):
            said(await client.post("/v1/chat/completions", json={}, headers={"origin": foreign}), 403)
        assert (await client.get("/v1/models", headers={"origin": f"{client.base_url}".rstrip("/")})).is_success

    @pytest.mark.parametrize("path", ["/v1/models", "/metrics"])
    async def test_names_bent_to_this_machine_are_refused(self, api: Any, path: str) -> None:
        client = await api(FakeEngine())
        for evil in ("evil.example:7899", "localhost.evil.example", "127.0.0.1.evil.example", "[::2]:1", "localhost:a"):
            response = await client.get(path, headers={"host": evil, "origin": f"http://{evil}"})
            assert "only on this machine" in said(response, 403)
        for own in ("localhost", "LOCALHOST:7899", "127.0.0.1:1", "[::1]:7860"):
            assert (await client.get(path, headers={"host": own})).is_success

    @pytest.mark.parametrize(
        "fields", [{"host": "0.0.0.0"}, {"share": True}, {"serve_key": "s3cret"}, {"auth": "ann:pass"}]
    )
    async def test_a_server_for_others_has_any_name(self, api: Any, fields: dict[str, Any]) -> None:
        client = await api(FakeEngine(), **fields)
        headers = {"host": "omni.example"} | ({"authorization": "Bearer s3cret"} if "serve_key" in fields else {})
        auth = ("ann", "pass") if "auth" in fields else None
        assert (await client.get("/v1/models", headers=headers, auth=auth)).is_success


class TestLeaving:
    @pytest.mark.parametrize("stream", [True, False])
    @pytest.mark.parametrize("first", [[], [TextDelta("so far")]])
    async def test_a_caller_who_leaves_stops_the_reply(self, api: Any, stream: bool, first: list[Event]) -> None:
        engine = FakeEngine(*first, asyncio.Event())
        client = await api(engine)
        asking = asyncio.create_task(ask(client, stream=stream))
        await engine.begun.wait()
        assert not engine.closed.is_set()
        asking.cancel()
        await asyncio.wait_for(engine.closed.wait(), 5)

    async def test_eight_callers_at_once_are_not_mixed_up(self, api: Any) -> None:
        client = await api(EchoEngine())
        words = [f"caller {number} " * 20 for number in range(8)]
        asked = ({"messages": [{"role": "user", "content": word}], "modalities": ["text"]} for word in words)
        answers = await asyncio.gather(*(ask(client, **fields) for fields in asked))
        assert [one.json()["choices"][0]["message"]["content"] for one in answers] == words


class TestWatching:
    async def test_health(self, api: Any) -> None:
        engine = FakeEngine()
        client = await api(engine)
        assert (await client.get("/health")).json() == {"status": "healthy"}
        engine.ready = False
        response = await client.get("/health")
        assert response.status_code == 503
        assert response.json() == {"status": "unhealthy", "why": "Loading the model."}

    async def test_metrics_count_what_happened(self, api: Any) -> None:
        engine = FakeEngine()
        client = await api(engine)
        bad_picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        await ask(client)
        await ask(client, stream=True)
        await ask(client, modalities=["smell"])
        await ask(client, messages=[{"role": "user", "content": [bad_picture]}])
        engine.script = (EngineAtCapacity("Full."),)
        await ask(client)
        page = (await client.get("/metrics")).text
        for line in (
            'omni_requests_total{outcome="ok"} 2.0',
            'omni_requests_total{outcome="bad_request"} 1.0',
            'omni_requests_total{outcome="media_rejected"} 1.0',
            'omni_requests_total{outcome="at_capacity"} 1.0',
            "omni_replies_running 0.0",
            "omni_first_text_seconds_count 2.0",
            "omni_first_sound_seconds_count 2.0",
            "omni_media_rejected_total 1.0",
        ):
            assert line in page.splitlines()
        (speech_s,) = (line.split()[1] for line in page.splitlines() if line.startswith("omni_speech_seconds_total "))
        assert float(speech_s) == pytest.approx(2 * (len(PCM) + 3000) / 48_000)


class TestOurOwnEngineAsClient:
    """The vllm-omni engine over our own API: what one engine says, the other repeats, bit for bit."""

    @pytest.fixture
    def through(self, api: Any) -> Any:
        async def start(engine: FakeEngine, **fields: Any) -> VllmOmniEngine:
            client = await api(engine, **fields)
            address = f"{client.base_url}".rstrip("/")
            return VllmOmniEngine(settings(endpoint=address, api_key=fields.get("serve_key", "")), tries=1)

        return start

    @pytest.mark.parametrize(
        "script",
        [
            REPLY,
            (Heard("grüß Gott"), *REPLY),
            (*REPLY[:-1], ReplyEnd("length")),
            (*REPLY[:-2], ReplyStats(None, 7, {"2": {"audio_duration_s": 1.5}}), ReplyEnd()),
            (AudioDelta(PCM, 22_050), AudioDelta(PCM[:2], 16_000), TextDelta("late"), ReplyEnd()),
            (ReplyEnd(),),
        ],
    )
    async def test_every_event_comes_back(self, through: Any, script: tuple[Event, ...]) -> None:
        engine = await through(FakeEngine(*script), serve_key="s3cret")
        await engine.start()
        options = ReplyOptions(extra={"return_stage_metrics": True})
        assert [event async for event in engine.reply([Message.of("user", "hi")], options)] == list(script)
        await engine.close()

    async def test_it_learns_what_the_other_has(self, through: Any) -> None:
        engine = await through(FakeEngine())
        await engine.start()
        status = engine.status()
        assert status.ready
        assert status.model == "tiny-omni"
        assert status.voices == ("Ethan", "Chelsie")
        assert status.modalities == {"text", "image", "audio"}
        with pytest.raises(BadRequest, match="Ethan, Chelsie"):
            await anext(engine.reply([Message.of("user", "hi")], ReplyOptions(voice="alloy")))
        await engine.close()

    async def test_the_request_arrives_as_it_was_meant(self, through: Any, tmp_path: Path) -> None:
        far = FakeEngine()
        engine = await through(far)
        sound = tmp_path / "s.wav"
        sound.write_bytes(wav())
        messages = [
            Message.of("system", "be kind"),
            Message.of("user", "one"),
            Message.of("assistant", "two", Part("audio", path=sound)),
            Message.of("user", "three", Part("audio", path=sound, mime="audio/wav")),
        ]
        options = ReplyOptions(speech=False, voice="ethan", max_tokens=9, temperature=0.5, seed=3)
        said = [event async for event in engine.reply(messages, options)]
        assert said == [TextDelta("Grüß "), TextDelta("Gott! 你好 🎈"), *REPLY[-2:]]
        heard, meant = far.asked[0]
        assert meant == ReplyOptions(speech=False, max_tokens=9, temperature=0.5, seed=3)
        assert [(one.role, one.text, len(one.media)) for one in heard] == [
            ("system", "be kind", 0), ("user", "one", 0), ("assistant", "two", 0), ("user", "three", 1),
        ]  # fmt: skip
        assert [(len(one), one[:44]) for one in far.saw] == [(len(wav()), wav()[:44])]
        await engine.close()

    async def test_stopping_here_stops_there(self, through: Any) -> None:
        far = FakeEngine(TextDelta("so far"), asyncio.Event())
        engine = await through(far)
        reply = engine.reply([Message.of("user", "hi")], ReplyOptions())
        assert await anext(reply) == TextDelta("so far")
        await reply.aclose()
        await asyncio.wait_for(far.closed.wait(), 5)
        await engine.close()

    @pytest.mark.parametrize(
        "error", [EngineAtCapacity("Full."), EngineUnavailable("Loading."), EngineFailed("Broke.")]
    )
    async def test_errors_keep_their_kind(self, through: Any, error: OmniError) -> None:
        engine = await through(FakeEngine(error))
        with pytest.raises(type(error), match=str(error)):
            await anext(engine.reply([Message.of("user", "hi")], ReplyOptions()))
        await engine.close()

    async def test_a_failure_in_mid_answer_keeps_what_was_said(self, through: Any) -> None:
        engine = await through(FakeEngine(*REPLY[:3], EngineFailed("The talker died.")))
        events: list[Event] = []
        with pytest.raises(EngineFailed, match="The talker died"):
            await collect(engine.reply([Message.of("user", "hi")], ReplyOptions()), events)
        assert events == list(REPLY[:3])
        await engine.close()
