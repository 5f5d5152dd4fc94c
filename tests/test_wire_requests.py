"""Requests in the dialect: a caller's body read into our words, and our conversation written as a body."""

from pathlib import Path
from typing import Any

import pytest

from omni_app.conversation import Message, Part, ReplyOptions
from omni_app.errors import BadRequest
from omni_app.wire import (
    MediaRef,
    MessageSpec,
    build_request,
    parse_request,
    token_limit,
)

USER = {"messages": [{"role": "user", "content": "hello"}]}


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
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,cGljdHVyZQ=="}},
            {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,c291bmQ="}},
            {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,Y2xpcA=="}},
            {"type": "text", "text": "what?"},
        ]

    def test_what_it_builds_our_api_reads(self) -> None:
        sound = Part("audio", path=Path("a.wav"), mime="audio/wav")
        request = parse_request(built(Message.of("system", "be kind"), Message.of("user", "what?", sound)))
        assert [one.role for one in request.messages] == ["system", "user"]
        assert request.messages[1].parts == (MediaRef("audio", "data:audio/wav;base64,c291bmQ="), "what?")

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
