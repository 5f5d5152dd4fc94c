import base64
import io
import json
import wave
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from omni_app.conversation import AudioDelta, Event, Heard, ReplyEnd, ReplyStats, TextDelta
from omni_app.errors import BadRequest, EngineAtCapacity, EngineFailed, EngineUnavailable, MediaRejected, OmniError
from omni_app.wire import (
    DONE,
    ChatRequest,
    ReplyDecoder,
    ReplyEncoder,
    completion_body,
    decode_body,
    error_body,
    error_from,
    error_in_stream,
    parse_request,
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
        said = [Heard("\ud83d."), TextDelta("\ud83d!"), ReplyEnd()]
        assert decoded(encoded(said, asked())) == [Heard("?."), TextDelta("?!"), ReplyEnd()]

    def test_half_a_surrogate_pair_in_an_error(self) -> None:
        assert "?!" in str(error_from(400, b'{"error": "\\ud83d!"}', server="The server"))

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

    @pytest.mark.parametrize("endless", [b"data: " + b"x" * 2000, b"data: xxxx\n" * 200])
    def test_a_chunk_without_end_is_refused(self, monkeypatch: pytest.MonkeyPatch, endless: bytes) -> None:
        monkeypatch.setattr("omni_app.wire.decode.LONGEST_CHUNK", 1000)
        assert "never ends" in str(outcome(endless, step=100)[1])

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
