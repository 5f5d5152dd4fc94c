"""Scripted servers, one for each dialect. They stand in for what cannot run here, and are as strict as the real ones:
what a real server refuses they refuse. The sources are those of `omni_app/engines/dialects.py`; each class names its
own. All say `REPLY` in the chunks of their dialect.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import wave
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from omni_app.conversation import AudioDelta, Event, Message, ReplyEnd, ReplyOptions, ReplyStats, TextDelta
from omni_app.engines.endpoint import EndpointEngine
from omni_app.engines.openai_compatible import OpenAICompatibleEngine
from omni_app.errors import OmniError
from tests.scripted import played

AnyEngine = OpenAICompatibleEngine | EndpointEngine
HI = [Message.of("user", "hi")]
PCM = bytes(range(256)) * 30
WORDS = ("Grüß ", "Gott")
SPOKEN = (AudioDelta(PCM, 24_000), AudioDelta(PCM[:3000], 24_000))
TEXT_REPLY = [*map(TextDelta, WORDS), ReplyStats(5, 7), ReplyEnd()]
REPLY = [TextDelta(WORDS[0]), SPOKEN[0], TextDelta(WORDS[1]), SPOKEN[1], ReplyStats(5, 7), ReplyEnd()]
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
PARTS = {"image_url": "image", "video_url": "video", "audio_url": "audio", "input_audio": "audio"}
DONE = b"data: [DONE]\n\n"


def sse(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def delta(finish: str | None = None, /, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": fields, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def b64(sound: bytes) -> str:
    return base64.b64encode(sound).decode()


def wav(pcm: bytes) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 24_000, 0, "NONE", ""))
        out.writeframes(pcm)
    return file.getvalue()


def refused(message: str, status: int = 400) -> Response:
    return JSONResponse(
        {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}, status
    )


async def outcome(engine: AnyEngine, messages: list[Message] = HI, **options: Any) -> tuple[list[Event], Any]:
    """The events, those before an error too, and the error."""
    events: list[Event] = []
    try:
        async for event in engine.reply(messages, ReplyOptions(**options)):
            events.append(event)  # noqa: PERF401
    except OmniError as error:
        return events, error
    return events, None


class ScriptedServer:
    """`pages` are its GET answers by path. `script`, when set, is what every chat request gets instead of an answer: a
    Response, or pieces to stream, in which an asyncio.Event is waited for and an exception breaks the connection."""

    owner = ""
    kinds: Sequence[str] = ("image", "audio", "video")
    speaks = True

    def __init__(self, *, speaks: bool | None = None, kinds: Sequence[str] | None = None) -> None:
        self.speaks = self.speaks if speaks is None else speaks
        self.kinds = self.kinds if kinds is None else kinds
        self.pages: dict[str, Any] = {"/v1/models": {"data": [{"id": "m", "object": "model", "owned_by": self.owner}]}}
        self.script: Any = None
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.left = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self.keys.add(request.headers.get("authorization"))
        await (await self._answer(request))(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if request.method == "GET":
            page = self.pages.get(request.url.path, JSONResponse({"detail": "Not Found"}, 404))
            return page if isinstance(page, Response) else JSONResponse(page)
        self.bodies.append(body := await request.json())
        if isinstance(self.script, Response):
            return self.script
        if self.script is not None:
            return StreamingResponse(played(self.script, self.left), media_type="text/event-stream")
        if no := self.refuse(body):
            return no
        if body.get("stream"):
            return StreamingResponse(map(bytes, self.chunks(body)), media_type="text/event-stream")
        return JSONResponse(self.whole(body))

    def refuse(self, body: Mapping[str, Any]) -> Response | None:
        missing = [kind for kind in kinds_in(body) if kind not in self.kinds]
        return refused(f"The model takes no {missing[0]}.") if missing else None

    def wants_speech(self, body: Mapping[str, Any]) -> bool:
        return self.speaks and "audio" in (body.get("modalities") or [])

    def chunks(self, body: Mapping[str, Any]) -> Iterator[bytes]:
        raise NotImplementedError

    def whole(self, body: Mapping[str, Any]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(WORDS)}
        if self.wants_speech(body):
            message["audio"] = self.speech()
        return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": USAGE}

    def speech(self) -> dict[str, Any]:
        return {"id": "audio-1", "data": b64(PCM), "transcript": "".join(WORDS)}


def kinds_in(body: Mapping[str, Any]) -> list[str]:
    contents = [message["content"] for message in body["messages"] if isinstance(message["content"], list)]
    return [PARTS[part["type"]] for content in contents for part in content if part["type"] != "text"]


class SGLangOmni(ScriptedServer):
    """sgl-project/sglang-omni, sglang_omni/serve/openai_api.py: the role rides on the first text, each piece of speech
    is a file of the asked format ("wav" when it does not know it), the finish chunk carries the usage. A text-only
    pipeline takes a request for speech and sends none."""

    owner = "sglang-omni"

    def chunks(self, body: Mapping[str, Any]) -> Iterator[bytes]:
        encode = (lambda pcm: pcm) if body.get("audio", {}).get("format") == "pcm" else wav
        for number, word in enumerate(WORDS):
            yield sse(delta(content=word, **({} if number else {"role": "assistant"})))
            if self.wants_speech(body):
                yield sse(delta(audio={"id": "audio-1", "data": b64(encode(SPOKEN[number].pcm))}))
        yield sse(delta("stop") | {"usage": USAGE})
        yield DONE

    def speech(self) -> dict[str, Any]:
        return super().speech() | {"data": b64(wav(PCM))}


class EdgeLLM(ScriptedServer):
    """NVIDIA/TensorRT-Edge-LLM, experimental/server/api/protocol.py (fields, `extra="forbid"`), routes.py (`/health`,
    `/v1/voices`), serving_chat.py (chunks); docs/source/user_guide/examples/experimental-server.md."""

    owner = "tensorrt-edgellm"
    FIELDS = (
        "messages model frequency_penalty presence_penalty logit_bias logprobs top_logprobs max_tokens "
        "max_completion_tokens n seed stop stream stream_options temperature top_p top_k min_p repetition_penalty "
        "tools tool_choice parallel_tool_calls response_format guided_decoding modalities audio "
        "apply_chat_template add_generation_prompt enable_thinking reasoning_effort chat_template_kwargs "
        "disable_spec_decode reuse_context cache_generated_tokens"
    )

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        told = {"chat": True, "speech": self.speaks, "input_modalities": ["text", *self.kinds], "max_model_len": 4096}
        told["output_modalities"] = ["text", "audio"] if self.speaks else ["text"]
        self.pages["/health"] = {"status": "healthy", "model": "m", "active_requests": 0, "capabilities": told}
        voices = [{"id": name, "object": "voice"} for name in ("Ryan", "Vivian")]
        self.pages["/v1/voices"] = {"object": "list", "data": voices if self.speaks else []}

    def refuse(self, body: Mapping[str, Any]) -> Response | None:
        audio, wanted = body.get("audio"), "audio" in (body.get("modalities") or [])
        if unknown := set(body) - set(self.FIELDS.split()):
            return refused(f"Extra inputs are not permitted: {', '.join(sorted(unknown))}")
        if wanted != (audio is not None):
            return refused("audio output requires both modalities including 'audio' and an audio configuration")
        if audio and (not self.speaks or audio.get("format", "pcm16") != "pcm16"):
            return refused("audio output requires an Omni engine bundle")
        if audio and audio.get("voice", "") not in ("", "Ryan", "Vivian"):
            return refused(f"unknown voice {audio['voice']!r}; available: Ryan, Vivian")
        return super().refuse(body)

    def chunks(self, body: Mapping[str, Any]) -> Iterator[bytes]:
        yield sse(delta(role="assistant", content=None, audio=None))
        for number, word in enumerate(WORDS):
            yield sse(delta(content=word, audio=None))
            if body.get("audio"):
                sound = {"id": "audio-1", "data": b64(SPOKEN[number].pcm), "format": "pcm16", "sample_rate": 24_000}
                yield sse(delta(content=None, audio=sound))
        yield sse(delta("stop", content=None))
        if body.get("stream_options", {}).get("include_usage"):
            yield sse(delta() | {"choices": [], "usage": USAGE})
        yield DONE


class PlainVLLM(ScriptedServer):
    """vllm-project/vllm, vllm/entrypoints/openai: text alone, whatever `modalities` say. The refusal of a picture is
    that of issue 19144 there; chunks as in tests/data/vllm_omni_0_30, which share vLLM's code for text."""

    owner = "vllm"
    kinds: Sequence[str] = ()
    speaks = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.pages["/health"] = Response()
        self.pages["/metrics"] = PlainTextResponse("# HELP vllm:num_requests_running Number of requests\n")

    def refuse(self, body: Mapping[str, Any]) -> Response | None:
        missing = [kind for kind in kinds_in(body) if kind not in self.kinds]
        return refused("m is not a multimodal model") if missing else None

    def chunks(self, body: Mapping[str, Any]) -> Iterator[bytes]:
        yield sse(delta(role="assistant", content=""))
        yield from (sse(delta(content=word)) for word in WORDS)
        yield sse(delta("stop", content=""))
        yield sse(delta() | {"choices": [], "usage": USAGE})
        yield DONE


class OpenAIAudio(ScriptedServer):
    """api.openai.com with gpt-audio, as shown in community.openai.com/t/waiting-for-gpt-4o-audio-preview/970884: the
    text is the transcript; all counts include the tokens of speech. It wants a voice, and sound on one side."""

    owner = "openai"
    kinds = ("audio",)

    def refuse(self, body: Mapping[str, Any]) -> Response | None:
        audio = body.get("audio")
        if not audio and "audio" not in kinds_in(body):
            return refused("This model requires that either input content or output modality contain audio.")
        if audio and not ("voice" in audio and (audio["format"] == "pcm16" or not body.get("stream"))):
            return refused("Missing required parameter: 'audio.voice'.")
        if "max_tokens" in body:
            return refused("Unsupported parameter: 'max_tokens' is not supported with this model.")
        return super().refuse(body)

    def chunks(self, body: Mapping[str, Any]) -> Iterator[bytes]:
        yield sse(delta(role="assistant", refusal=None))
        for number, word in enumerate(WORDS):
            if not self.wants_speech(body):
                yield sse(delta(content=word))
                continue
            yield sse(delta(content=None, audio={"id": "audio_1", "transcript": word}))
            yield sse(delta(audio={"data": b64(SPOKEN[number].pcm)}))
        yield sse(delta(audio={"expires_at": 1729447781}))
        yield sse(delta("stop"))
        counted = {"completion_tokens": 27, "completion_tokens_details": {"audio_tokens": 20, "text_tokens": 7}}
        yield sse(delta() | {"choices": [], "usage": USAGE | counted})
        yield DONE

    def whole(self, body: Mapping[str, Any]) -> dict[str, Any]:
        whole = super().whole(body)
        if self.wants_speech(body):
            whole["choices"][0]["message"]["content"] = None
        return whole
