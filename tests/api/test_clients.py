"""Clients of others, and our own engine as a client, in front of the API."""

import asyncio
import base64
import io
import wave
from pathlib import Path
from typing import Any

import openai
import pytest

from omni_app.conversation import AudioDelta, Event, Heard, Message, Part, ReplyEnd, ReplyOptions, ReplyStats, TextDelta
from omni_app.engines.vllm_omni import VllmOmniEngine
from omni_app.errors import BadRequest, EngineAtCapacity, EngineFailed, EngineUnavailable, OmniError
from tests.api.callers import (
    HELLO,
    PCM,
    REPLY,
    FakeEngine,
    collect,
    settings,
    stock,
    wav,
)

pytestmark = pytest.mark.anyio


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
