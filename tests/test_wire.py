import base64
import io
import json
import wave
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from omni_app.conversation import AudioDelta, Event, Heard, Message, Part, ReplyEnd, ReplyOptions, ReplyStats, TextDelta
from omni_app.errors import BadRequest, EngineAtCapacity, EngineFailed, EngineUnavailable, MediaRejected, OmniError
from omni_app.wire import (
    DONE,
    ChatRequest,
    MediaRef,
    MessageSpec,
    ReplyDecoder,
    ReplyEncoder,
    build_request,
    completion_body,
    decode_body,
    error_body,
    error_from,
    error_in_stream,
    parse_request,
    token_limit,
)

PCM = bytes(range(256)) * 30
REPLY: tuple[Event, ...] = (
    Heard("grüß Gott 你好"),
    TextDelta("Grüß "),
    TextDelta("Gott! 你好 🎈"),
    AudioDelta(PCM, 24_000),
    TextDelta(" <b>&amp;</b>\n\ndata: [DONE]\n\n"),
    AudioDelta(PCM[:2000], 24_000),
    ReplyStats(11, 7, {"1": {"num_tokens_out": 25}}),
    ReplyEnd("stop"),
)
USER = {"messages": [{"role": "user", "content": "hello"}]}


def asked(**fields: Any) -> ChatRequest:
    return parse_request({**USER, "stream_options": {"include_usage": True}, "return_stage_metrics": True, **fields})


def encoded(events: Sequence[Event], request: ChatRequest) -> bytes:
    encoder = ReplyEncoder(request, "tiny")
    return b"".join(encoder.encode(event) for event in events)


def chunks(stream: bytes) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in stream.decode().split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def decoded(stream: bytes, max_tokens: int | None = None, step: int = 10**9) -> list[Event]:
    events, error = outcome(stream, max_tokens, step)
    assert error is None
    return events


def outcome(stream: bytes, max_tokens: int | None = None, step: int = 10**9) -> tuple[list[Event], OmniError | None]:
    """What came out before the stream ended or failed, and how it failed."""
    decoder, events = ReplyDecoder(max_tokens), list[Event]()
    try:
        for start in range(0, len(stream), step):
            for event in decoder.feed(stream[start : start + step]):
                events.append(event)
        for event in decoder.close():
            events.append(event)
    except OmniError as error:
        return events, error
    return events, None


def sse(*parts: object) -> bytes:
    return b"".join(b"data: " + json.dumps(part).encode() + b"\n\n" for part in parts)


def text(content: str, **extra: Any) -> dict[str, Any]:
    return {"modality": "text", "choices": [{"index": 0, "delta": {"content": content}}], **extra}


def audio(content: str, metadata: Any = None, **choice: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"role": "assistant", "content": content}, "audio_metadata": metadata, **choice}
    return {"modality": "audio", "choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 0}}


def finish(reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def wav(pcm: bytes, rate: int = 24_000, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(pcm)
    return file.getvalue()


class TestRoundTrip:
    @pytest.mark.parametrize("audio_format", ["pcm", "pcm16", "wav"])
    @pytest.mark.parametrize("step", [1, 7, 4096, 10**9])
    def test_events_come_back_equal_wherever_the_bytes_are_cut(self, audio_format: str, step: int) -> None:
        stream = encoded(REPLY, asked(audio={"format": audio_format}))
        assert decoded(stream, step=step) == list(REPLY)

    def test_crlf_comments_and_other_fields_change_nothing(self) -> None:
        stream = encoded(REPLY, asked()).replace(b"\n\n", b"\r\n: ping\r\nid: 4\r\nevent: message\r\n\r\n")
        assert decoded(stream, step=3) == list(REPLY)

    @pytest.mark.parametrize("reason", ["stop", "length", "cancelled"])
    @pytest.mark.parametrize("sampled", [[], [TextDelta("a")], [TextDelta("a"), AudioDelta(PCM, 22_050)]])
    def test_the_end_says_why(self, reason: Any, sampled: list[Event]) -> None:
        events = [*sampled, ReplyEnd(reason)]
        assert decoded(encoded(events, asked())) == events

    def test_one_body(self) -> None:
        body = json.loads(json.dumps(completion_body(REPLY, asked(audio={"format": "pcm"}), "tiny")))
        said = "".join(event.text for event in REPLY if isinstance(event, TextDelta))
        assert decode_body(body) == [REPLY[0], TextDelta(said), AudioDelta(PCM + PCM[:2000], 24_000), *REPLY[-2:]]


class TestEncode:
    def test_first_text_chunk_names_the_role_and_is_empty(self) -> None:
        first, second = chunks(encoded([TextDelta("hi"), ReplyEnd()], asked(modalities=["text"])))[:2]
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert first["object"] == "chat.completion.chunk"
        assert first["modality"] == "text"
        assert second["choices"][0]["delta"] == {"content": "hi"}
        assert first["id"] == second["id"]

    def test_heard_rides_on_an_empty_text_chunk(self) -> None:
        first = chunks(encoded([Heard("what was said"), ReplyEnd()], asked()))[0]
        assert first["heard"] == "what was said"
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}

    def test_speech_is_in_content_with_metadata_and_a_usage_of_the_prompt(self) -> None:
        chunk = chunks(encoded([AudioDelta(PCM, 24_000), ReplyEnd()], asked(modalities=["audio"])))[0]
        (choice,) = chunk["choices"]
        sound = base64.b64decode(choice["delta"]["content"])
        assert chunk["modality"] == "audio"
        assert sound == wav(PCM)
        frames = len(PCM) // 2
        assert choice["audio_metadata"] == {
            "format": "wav", "sample_rate_hz": 24_000, "frame_count": frames, "channels": 1,
        }  # fmt: skip
        assert chunk["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}

    @pytest.mark.parametrize(
        ("events", "modality"),
        [
            ([TextDelta("a"), AudioDelta(PCM, 24_000)], "audio"),
            ([AudioDelta(PCM, 24_000), TextDelta("a")], "text"),
            ([TextDelta("a")], None),
            ([AudioDelta(PCM, 24_000)], None),
        ],
    )
    def test_exactly_one_finish_on_the_modality_that_ends_last(self, events: list[Event], modality: str | None) -> None:
        finished = [
            chunk
            for chunk in chunks(encoded([*events, ReplyEnd("length")], parse_request(USER)))
            if chunk["choices"][0]["finish_reason"] == "length"
        ]
        assert [chunk.get("modality") for chunk in finished] == [modality]

    def test_only_what_was_asked_for_goes_out(self) -> None:
        only_text = encoded(REPLY, parse_request({**USER, "modalities": ["text"]}))
        assert all(chunk.get("modality") == "text" and "metrics" not in chunk for chunk in chunks(only_text))
        assert all(chunk["choices"] for chunk in chunks(only_text))
        only_speech = encoded(REPLY, parse_request({**USER, "modalities": ["audio"]}))
        assert not any(isinstance(event, TextDelta) for event in decoded(only_speech))

    def test_usage_comes_last_without_choices(self) -> None:
        last = chunks(encoded(REPLY, asked()))[-1]
        assert last["choices"] == []
        assert last["usage"] == {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}

    def test_a_failure_in_mid_stream(self) -> None:
        encoder = ReplyEncoder(asked(), "tiny")
        stream = encoder.encode(TextDelta("so far")) + encoder.error(EngineFailed("It broke."))
        assert stream.endswith(DONE)
        events, error = outcome(stream)
        assert events == [TextDelta("so far")]
        assert isinstance(error, EngineFailed)
        assert "It broke." in str(error)

    def test_half_a_surrogate_pair_does_not_break_the_stream(self) -> None:
        assert decoded(encoded([TextDelta("\ud83d!"), ReplyEnd()], asked())) == [TextDelta("?!"), ReplyEnd()]

    def test_one_body_has_everything_in_one_choice(self) -> None:
        body = completion_body(REPLY, asked(), "tiny")
        (choice,) = body["choices"]  # type: ignore[misc]
        message = choice["message"]
        assert base64.b64decode(message["audio"]["data"]) == wav(PCM + PCM[:2000])
        assert message["audio"]["transcript"] == message["content"]
        assert message["audio"]["expires_at"] > body["created"]  # type: ignore[operator]
        assert choice["audio_metadata"]["frame_count"] == (len(PCM) + 2000) // 2
        assert body["heard"] == "grüß Gott 你好"
        assert body["metrics"] == {"stage_metrics": {"1": {"num_tokens_out": 25}}}

    def test_one_body_of_speech_alone_has_no_content(self) -> None:
        body: Any = completion_body(REPLY, asked(modalities=["audio"]), "tiny")
        assert body["choices"][0]["message"]["content"] is None

    def test_one_body_cannot_hold_two_sample_rates(self) -> None:
        with pytest.raises(EngineFailed, match="stream: true"):
            completion_body([AudioDelta(PCM, 24_000), AudioDelta(PCM, 22_050)], asked(), "tiny")


class TestDecode:
    def test_pcm_without_metadata_is_24_khz(self) -> None:
        stream = sse(audio(b64(PCM)), finish()) + DONE
        assert decoded(stream) == [AudioDelta(PCM, 24_000), ReplyStats(prompt_tokens=9), ReplyEnd()]

    def test_every_wav_chunk_is_a_file_of_its_own(self) -> None:
        stream = sse(audio(b64(wav(PCM))), audio(b64(wav(PCM[:100], 16_000))), finish()) + DONE
        assert decoded(stream)[:2] == [AudioDelta(PCM, 24_000), AudioDelta(PCM[:100], 16_000)]

    def test_nulls_empty_chunks_and_unknown_fields_are_passed_over(self) -> None:
        empty = {"modality": "text", "choices": None, "usage": None, "metrics": None, "error": None, "new_in_031": 1}
        nulls = {"choices": [{"index": 0, "delta": None, "finish_reason": None, "audio_metadata": None}]}
        picture = {"modality": "image", "choices": [{"delta": {"content": [{"type": "image_url"}]}}]}
        no_sound = audio("", finish_reason="stop")
        stream = sse(empty, nulls, text("a"), audio(b64(wav(b""))), no_sound) + DONE
        assert decoded(stream) == [TextDelta("a"), ReplyStats(prompt_tokens=9), ReplyEnd()]
        assert isinstance(outcome(sse(picture))[1], EngineFailed)

    def test_fallback_finish_without_modality(self) -> None:
        assert decoded(sse(text("a"), finish()) + DONE) == [TextDelta("a"), ReplyEnd()]

    def test_a_count_of_nothing_is_no_count(self) -> None:
        zero = {"choices": [], "usage": {"prompt_tokens": 0, "total_tokens": 0, "completion_tokens": 0}}
        assert decoded(sse(text("a"), finish(), zero) + DONE) == [TextDelta("a"), ReplyEnd()]

    def test_the_last_metrics_win(self) -> None:
        first, last = ({"stage_metrics": {"0": {"num_tokens_out": n}}} for n in (1, 2))
        events = decoded(
            sse(text("a", metrics=first), text("b", metrics=last), text("", metrics=None), finish()) + DONE
        )
        assert events[2] == ReplyStats(stages={"0": {"num_tokens_out": 2}})

    @pytest.mark.parametrize(
        ("finish_reason", "completion", "limit", "stages", "reason"),
        [
            ("stop", 20, 20, {}, "length"),
            ("stop", 19, 20, {}, "stop"),
            ("stop", 20, None, {}, "stop"),
            ("length", 3, None, {}, "length"),
            ("stop", 3, None, {"0": {"finish_reason": "length"}}, "length"),
            ("abort", 20, 20, {}, "cancelled"),
            ("tool_calls", 3, 20, {}, "stop"),
        ],
    )
    def test_the_token_limit_shows_whatever_the_finish_reason_hides(
        self, finish_reason: str, completion: int, limit: int | None, stages: dict[str, Any], reason: str
    ) -> None:
        usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": completion}}
        usage["metrics"] = {"stage_metrics": stages}  # type: ignore[assignment]
        events = decoded(sse(text("a"), finish(finish_reason), usage) + DONE, max_tokens=limit)
        assert events[-1] == ReplyEnd(reason)  # type: ignore[arg-type]

    def test_what_follows_the_end_is_not_looked_at(self) -> None:
        assert decoded(sse(text("a"), finish()) + DONE + b"data: {torn\n\n")[-1] == ReplyEnd()

    def test_a_finished_answer_needs_no_done(self) -> None:
        assert decoded(sse(text("a"), finish())) == [TextDelta("a"), ReplyEnd()]

    @pytest.mark.parametrize(
        ("rest", "words"),
        [
            (b"", "closed the connection in the middle"),
            (b'data: {"choices": [{"del', "closed the connection in the middle"),
            (b'data: {"choices": [{"del\n\n', "torn"),
            (b"data: " + b"[" * 100_000 + b"\n\n", "torn"),
            (b"data: 7\n\n", "does not know"),
            (sse(text({"a": 1})), "does not know"),  # type: ignore[arg-type]
            (sse(audio(b64(PCM)[:-3])), "base64"),
            (sse(audio("no base64 at all!")), "base64"),
            (sse(audio("ä")), "base64"),
            (sse(audio(b64(PCM[:-1]))), "damaged"),
            (sse(audio(b64(PCM), {"format": "mp3"})), "format"),
            (sse(audio(b64(PCM), {"channels": 2})), "mono"),
            (sse(audio(b64(PCM), {"sample_rate_hz": "fast"})), "damaged"),
            (sse(audio(b64(wav(PCM, channels=2)))), "mono"),
            (sse(audio(b64(wav(PCM)[:-10]))), "cut"),
            (sse(audio(b64(wav(PCM)[:20]))), "not a readable WAV"),
            (sse(audio(b64(wav(PCM).replace(b"fmt ", b"junk")))), "not a readable WAV"),
            (sse(audio(b64(wav(PCM)[:16] + b"\xff" * 40))), "not a readable WAV"),
            (sse({"error": {"message": "stage 1 died", "code": 500}}), "stage 1 died"),
            (sse({"error": "stage 1 died"}), "stage 1 died"),
        ],
    )
    def test_what_goes_wrong_keeps_what_came_before(self, rest: bytes, words: str) -> None:
        events, error = outcome(sse(text("so far")) + rest, step=50)
        assert events == [TextDelta("so far")]
        assert isinstance(error, EngineFailed)
        assert words in str(error)

    def test_a_stream_that_ends_before_it_began(self) -> None:
        assert isinstance(outcome(DONE)[1], EngineFailed)
        assert isinstance(outcome(b"")[1], EngineFailed)

    def test_damage_anywhere_is_an_error_of_ours(self) -> None:
        whole, random = encoded(REPLY, asked()), Random(7)
        junk = [b"", b"{", b"null", b"\n\n", b'"', b"[1]", b"-1e999", b"\xff\x00"]
        for _ in range(500):
            start = random.randrange(len(whole))
            damaged = whole[:start] + random.choice(junk) + whole[start + random.randrange(400) :]
            _, error = outcome(damaged)
            assert error is None or isinstance(error, EngineFailed)

    def test_a_line_without_end_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("omni_app.wire.decode.LONGEST_LINE", 1000)
        assert "never ends" in str(outcome(b"data: " + b"x" * 2000, step=100)[1])

    def test_text_and_speech_in_two_choices(self) -> None:
        spoken = {"role": "assistant", "audio": {"data": b64(wav(PCM))}, "content": None}
        choices = [
            {"index": 0, "message": {"content": "hello"}, "finish_reason": "stop"},
            {"index": 0, "message": spoken, "finish_reason": "stop"},
        ]
        body = {"choices": choices, "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
        assert decode_body(body) == [TextDelta("hello"), AudioDelta(PCM, 24_000), ReplyStats(3, 2), ReplyEnd()]
        assert decode_body(body, max_tokens=2)[-1] == ReplyEnd("length")

    @pytest.mark.parametrize("body", [None, [], {}, {"choices": []}, {"error": {"message": "no"}}])
    def test_a_body_that_is_no_answer(self, body: object) -> None:
        with pytest.raises(EngineFailed):
            decode_body(body)


class TestErrors:
    def test_ours_become_openai_shaped(self) -> None:
        assert error_body(MediaRejected("Too long.")) == {
            "error": {"message": "Too long.", "type": "invalid_request_error", "param": None, "code": 400}
        }

    @pytest.mark.parametrize(
        "body",
        [
            b'{"error": {"message": "Invalid speaker", "type": "BadRequestError", "param": null, "code": 400}}',
            b'{"error": {"message": "Invalid speaker", "code": 400, "request_id": "r", "error_stage_id": 1}}',
            b'{"detail": "Invalid speaker"}',
            b'{"detail": [{"loc": ["body"], "msg": "Invalid speaker"}]}',
            b'{"error": "Invalid speaker"}',
            b"Invalid speaker",
        ],
    )
    def test_every_shape_gives_its_words(self, body: bytes) -> None:
        error = error_from(400, body, server="The server")
        assert type(error) is BadRequest
        assert "Invalid speaker" in str(error)

    @pytest.mark.parametrize(
        ("status", "kind", "words"),
        [
            (401, EngineUnavailable, "OMNI_API_KEY"),
            (403, EngineUnavailable, "OMNI_API_KEY"),
            (404, EngineUnavailable, "model"),
            (422, BadRequest, "did not accept"),
            (429, EngineAtCapacity, "again"),
            (503, EngineUnavailable, "loading"),
            (500, EngineFailed, "failed"),
            (307, EngineFailed, "307"),
        ],
    )
    def test_status_picks_the_error(self, status: int, kind: type[OmniError], words: str) -> None:
        error = error_from(status, b"<html>a page</html>", server="http://host")
        assert type(error) is kind
        assert words in str(error)
        assert "<html>" not in str(error)

    def test_a_deep_nest_is_not_dug_out(self) -> None:
        assert "failed" in str(error_from(500, b'{"error":' * 900 + b'"x"' + b"}" * 900, server="s"))

    def test_a_flood_of_words_is_cut(self) -> None:
        assert len(str(error_from(500, b"x" * 100_000, server="s"))) < 1000

    @pytest.mark.parametrize(
        ("code", "kind"), [(400, BadRequest), (429, EngineAtCapacity), (503, EngineUnavailable), (None, EngineFailed)]
    )
    def test_in_stream_before_the_first_word(self, code: int | None, kind: type[OmniError]) -> None:
        chunk = {"error": {"message": "why", "code": code}}
        assert type(error_in_stream(chunk, begun=False)) is kind
        assert type(error_in_stream(chunk, begun=True)) is EngineFailed


class TestParse:
    def test_a_plain_request(self) -> None:
        request = parse_request(USER)
        assert request.messages == (MessageSpec("user", ("hello",)),)
        assert request.options == ReplyOptions()
        assert (request.stream, request.audio_format, request.text, request.model) == (False, "wav", True, "")

    def test_every_field(self) -> None:
        request = parse_request({
            **USER, "model": "m", "stream": True, "modalities": ["audio"], "audio": {"format": "pcm16", "voice": "x"},
            "speaker": "Ethan", "max_completion_tokens": 30, "temperature": 1, "seed": -3,
            "stream_options": {"include_usage": True}, "return_stage_metrics": True, "logprobs": {"any": "thing"},
        })  # fmt: skip
        assert request.options == ReplyOptions(True, "Ethan", 30, 1.0, -3, {"return_stage_metrics": True})
        assert (request.stream, request.audio_format, request.text, request.model) == (True, "pcm", False, "m")
        assert request.include_usage
        assert request.stage_metrics

    def test_every_kind_of_part(self) -> None:
        parts = [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
            {"type": "audio_url", "audio_url": "DATA:audio/wav;base64,AA=="},
            {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA=="}},
            {"type": "input_audio", "input_audio": {"data": "AA==", "format": "mp3"}},
            {"type": "text", "text": "look"},
            {"type": "text", "text": "  "},
        ]
        (message,) = parse_request({"messages": [{"role": "user", "content": parts}]}).messages
        assert message.parts == (
            MediaRef("image", "data:image/png;base64,AA=="),
            MediaRef("audio", "DATA:audio/wav;base64,AA=="),
            MediaRef("video", "data:video/mp4;base64,AA=="),
            MediaRef("audio", "data:audio/mp3;base64,AA=="),
            "look",
        )

    def test_roles(self) -> None:
        said = [{"role": "developer", "content": "be kind"}, {"role": "assistant", "content": None}, *USER["messages"]]
        assert [one.role for one in parse_request({"messages": said}).messages] == ["system", "assistant", "user"]

    def test_half_a_surrogate_pair_in_the_text(self) -> None:
        (message,) = parse_request({"messages": [{"role": "user", "content": "\ud83d?"}]}).messages
        assert message.parts == ("??",)

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"messages": None}, "messages"),
            ({"messages": []}, "at least one"),
            ({"messages": "hello"}, "list"),
            ({"messages": ["hello"]}, "messages[0]"),
            ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
            ({"messages": [{"role": ["user"], "content": "x"}]}, "role"),
            ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "last"),
            ({"messages": [{"role": "user", "content": " "}]}, "empty"),
            ({"messages": [{"role": "user", "content": 5}]}, "content"),
            ({"messages": [{"role": "user", "content": ["x"]}]}, "content[0]"),
            ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "content[0].text"),
            ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "image_url"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "data URL"),
            ({"modalities": ["text", "image"]}, "image"),
            ({"modalities": []}, "modalities"),
            ({"modalities": [["text"]]}, "modalities"),
            ({"modalities": "text"}, "modalities"),
            ({"audio": {"format": "mp3"}}, "wav"),
            ({"audio": {"format": []}}, "wav"),
            ({"audio": "wav"}, "audio"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_tokens": True}, "max_tokens"),
            ({"max_tokens": 10.5}, "max_tokens"),
            ({"max_completion_tokens": -1}, "max_completion_tokens"),
            ({"temperature": 2.5}, "temperature"),
            ({"temperature": float("nan")}, "temperature"),
            ({"temperature": 10**400}, "temperature"),
            ({"temperature": "hot"}, "temperature"),
            ({"seed": 2**63}, "seed"),
            ({"stream": 1}, "stream"),
            ({"stream_options": []}, "stream_options"),
            ({"voice": 5}, "voice"),
            ({"model": {}}, "model"),
        ],
    )
    def test_faults_are_named(self, fields: dict[str, Any], words: str) -> None:
        with pytest.raises(BadRequest) as caught:
            parse_request({**USER, **fields})
        assert words in str(caught.value)

    @pytest.mark.parametrize(
        "url", ["http://host/cat.png", "https://host/cat.png", "file:///etc/passwd", "/etc/passwd"]
    )
    def test_addresses_are_never_fetched(self, url: str) -> None:
        part = {"type": "image_url", "image_url": {"url": url}}
        with pytest.raises(BadRequest, match="never fetched"):
            parse_request({"messages": [{"role": "user", "content": [part]}]})

    def test_media_only_from_the_user(self) -> None:
        part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
        with pytest.raises(BadRequest, match="user"):
            parse_request({"messages": [{"role": "system", "content": [part]}, *USER["messages"]]})

    @pytest.mark.parametrize("body", [None, [], "text", 4])
    def test_a_body_that_is_no_object(self, body: object) -> None:
        with pytest.raises(BadRequest, match="JSON object"):
            parse_request(body)


def built(*messages: Message, **options: Any) -> dict[str, Any]:
    read = {"a.wav": b"sound", "b.png": b"picture", "c.mp4": b"clip"}
    return build_request(messages, ReplyOptions(**options), model="m", read=lambda part: read[str(part.path)])


def clip(has_sound: bool) -> Part:
    return Part("video", path=Path("c.mp4"), mime="video/mp4", has_sound=has_sound)


class TestBuild:
    def test_text_and_speech(self) -> None:
        body = built(Message.of("user", "hi"), voice="aiden", max_tokens=50, temperature=0.5, seed=4)
        assert body == {
            "model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True,
            "stream_options": {"include_usage": True}, "modalities": ["text", "audio"], "audio": {"format": "pcm"},
            "voice": "aiden", "max_tokens": 50, "temperature": 0.5, "seed": 4,
        }  # fmt: skip

    def test_the_talker_rests_when_nobody_listens(self) -> None:
        body = built(Message.of("user", "hi"), speech=False, voice="aiden")
        assert body["modalities"] == ["text"]
        assert "audio" not in body
        assert "voice" not in body

    def test_the_token_limit_is_always_known(self) -> None:
        assert token_limit(built(Message.of("user", "hi"))) == 2048
        assert token_limit(built(Message.of("user", "hi"), extra={"sampling_params_list": [{"max_tokens": 9}]})) == 9

    def test_media_as_data_urls_in_their_order(self) -> None:
        picture, sound = Part("image", path=Path("b.png"), mime="image/png"), Part("audio", path=Path("a.wav"))
        (message,) = built(Message.of("user", "what?", picture, sound, clip(False)))["messages"]
        assert message["content"] == [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64," + b64(b"picture")}},
            {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64," + b64(b"sound")}},
            {"type": "video_url", "video_url": {"url": "data:video/mp4;base64," + b64(b"clip")}},
            {"type": "text", "text": "what?"},
        ]

    def test_what_it_builds_our_api_reads(self) -> None:
        sound = Part("audio", path=Path("a.wav"), mime="audio/wav")
        request = parse_request(built(Message.of("system", "be kind"), Message.of("user", "what?", sound)))
        assert [one.role for one in request.messages] == ["system", "user"]
        assert request.messages[1].parts == (MediaRef("audio", "data:audio/wav;base64," + b64(b"sound")), "what?")

    def test_own_speech_and_empty_turns_are_not_sent_back(self) -> None:
        spoken = Message.of("assistant", "hello", Part("audio", path=Path("a.wav")))
        messages = built(Message("assistant", ()), spoken, Message.of("user", "and?"))["messages"]
        assert messages == [{"role": "assistant", "content": "hello"}, {"role": "user", "content": "and?"}]

    @pytest.mark.parametrize(("clips", "listened"), [([True, True], True), ([True, False], False), ([], False)])
    def test_clips_are_listened_to_only_when_all_have_sound(self, clips: list[bool], listened: bool) -> None:
        body = built(Message.of("user", "hi", *map(clip, clips)), extra={"mm_processor_kwargs": {"fps": 2}})
        assert body["mm_processor_kwargs"].get("use_audio_in_video", False) is listened
        assert body["mm_processor_kwargs"]["fps"] == 2

    def test_extras_pass_but_do_not_override(self) -> None:
        body = built(Message.of("user", "hi"), extra={"top_p": 0.9, "stream": False, "temperature": 0.1})
        assert (body["top_p"], body["stream"], body["temperature"]) == (0.9, True, 0.1)

    def test_sampling_per_stage_is_completed(self) -> None:
        given = [{"top_p": 0.5}, {"temperature": 0.2}]
        body = built(Message.of("user", "hi"), temperature=0.7, seed=1, extra={"sampling_params_list": given})
        assert body["sampling_params_list"] == [
            {"temperature": 0.7, "max_tokens": 2048, "seed": 1, "top_p": 0.5},
            {
                "seed": 42, "temperature": 0.2, "top_k": 50, "max_tokens": 4096,
                "repetition_penalty": 1.05, "stop_token_ids": [2150],
            },
        ]  # fmt: skip
