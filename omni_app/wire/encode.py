"""Our events, written as the dialect's chunks, or as one body."""

from __future__ import annotations

import base64
import io
import json
import time
import uuid
import wave
from collections.abc import Mapping, Sequence

from omni_app.conversation import AudioDelta, Event, Heard, ReplyEnd, ReplyStats, TextDelta
from omni_app.errors import EngineFailed, OmniError
from omni_app.wire.faults import error_body
from omni_app.wire.request import AudioFormat, ChatRequest

DONE = b"data: [DONE]\n\n"
FINISH = {"stop": "stop", "length": "length", "cancelled": "abort"}
"""EndReason -> finish_reason; `abort` is vLLM's word for a request that was called off."""
DAY_S = 86_400


class ReplyEncoder:
    """Writes one streamed reply. Feed it every event; each gives the bytes of zero or more chunks."""

    def __init__(self, request: ChatRequest, model: str) -> None:
        self._request = request
        self._head = {"id": _new_id(), "object": "chat.completion.chunk", "created": int(time.time()), "model": model}
        self._begun = False
        self._seen: set[str] = set()
        self._last = "text"
        self._stats: ReplyStats | None = None

    def encode(self, event: Event) -> bytes:
        match event:
            case Heard(text):
                return self._text_chunk("", heard=text)
            case TextDelta(text):
                return self._text(text) if self._request.text and text else b""
            case AudioDelta():
                return self._audio(event)
            case ReplyStats():
                self._stats = event
                return b""
            case ReplyEnd(reason):
                return self._end(FINISH[reason]) + self._usage() + DONE

    def error(self, error: OmniError) -> bytes:
        """How a stream that has begun says that it failed; it is over after this."""
        return _sse(error_body(error)) + DONE

    def _text(self, text: str) -> bytes:
        self._seen.add("text")
        self._last = "text"
        opening = b"" if self._begun else self._text_chunk("")
        return opening + self._text_chunk(text)

    def _text_chunk(self, content: str, **extra: object) -> bytes:
        role = {} if self._begun else {"role": "assistant"}
        self._begun = True
        return self._chunk([_choice({**role, "content": content})], modality="text", **extra)

    def _audio(self, delta: AudioDelta) -> bytes:
        if not self._request.options.speech or not delta.pcm:
            return b""
        self._seen.add("audio")
        self._last = "audio"
        content = base64.b64encode(_sound(delta.pcm, delta.sample_rate, self._request.audio_format)).decode("ascii")
        choice = _choice({"role": "assistant", "content": content}) | {
            "audio_metadata": _metadata(delta.pcm, delta.sample_rate, self._request.audio_format)
        }
        return self._chunk([choice], modality="audio", usage=self._prompt_usage())

    def _end(self, finish_reason: str) -> bytes:
        asked = {"text"} if self._request.text else set()
        asked |= {"audio"} if self._request.options.speech else set()
        if not asked <= self._seen:
            return self._chunk([_choice({}, finish_reason)])
        if self._last == "text":
            return self._chunk([_choice({"content": ""}, finish_reason)], modality="text")
        choice = _choice({"role": "assistant", "content": ""}, finish_reason)
        return self._chunk([choice], modality="audio", usage=self._prompt_usage())

    def _usage(self) -> bytes:
        stats = self._stats
        if stats is None:
            return b""
        extra: dict[str, object] = {"usage": _usage(stats)} if self._request.include_usage else {}
        if self._request.stage_metrics and stats.stages:
            extra["metrics"] = {"stage_metrics": dict(stats.stages)}
        return self._chunk([], **extra) if extra else b""

    def _prompt_usage(self) -> dict[str, object]:
        prompt = (self._stats.prompt_tokens if self._stats else None) or 0
        return {"prompt_tokens": prompt, "completion_tokens": 0, "total_tokens": prompt}

    def _chunk(self, choices: list[dict[str, object]], **extra: object) -> bytes:
        return _sse({**self._head, "choices": choices, **extra})


def completion_body(events: Sequence[Event], request: ChatRequest, model: str) -> dict[str, object]:
    """A whole reply as one body: text and speech in one choice. `audio.transcript` holds the text, also when the caller
    asked for speech alone (vllm-omni leaves it empty there). Raises EngineFailed when the sample rate changes midway.
    """
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    heard = " ".join(event.text for event in events if isinstance(event, Heard))
    stats = next((event for event in events if isinstance(event, ReplyStats)), ReplyStats())
    reason = next((event.reason for event in events if isinstance(event, ReplyEnd)), "stop")
    message: dict[str, object] = {"role": "assistant", "content": text if request.text else None}
    choice: dict[str, object] = {"index": 0, "message": message, "finish_reason": FINISH[reason]}
    deltas = [event for event in events if isinstance(event, AudioDelta) and event.pcm]
    if request.options.speech and deltas:
        choice |= _speech(message, deltas, text, request.audio_format)
    body: dict[str, object] = {
        "id": _new_id(), "object": "chat.completion", "created": int(time.time()), "model": model,
        "choices": [choice], "usage": _usage(stats),
    }  # fmt: skip
    body |= {"heard": heard} if heard else {}
    body |= {"metrics": {"stage_metrics": dict(stats.stages)}} if request.stage_metrics and stats.stages else {}
    return body


def _speech(
    message: dict[str, object], deltas: Sequence[AudioDelta], transcript: str, audio_format: AudioFormat
) -> dict[str, object]:
    rate = deltas[0].sample_rate
    if any(delta.sample_rate != rate for delta in deltas):
        raise EngineFailed("The speech changed its sample rate in mid-answer; ask with stream: true to receive it.")
    pcm = b"".join(delta.pcm for delta in deltas)
    message["audio"] = {
        "id": f"audio-{uuid.uuid4().hex[:16]}",
        "data": base64.b64encode(_sound(pcm, rate, audio_format)).decode("ascii"),
        "expires_at": int(time.time()) + DAY_S,
        "transcript": transcript,
    }
    return {"audio_metadata": _metadata(pcm, rate, audio_format)}


def _choice(delta: Mapping[str, object], finish_reason: str | None = None) -> dict[str, object]:
    return {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": finish_reason}


def _usage(stats: ReplyStats) -> dict[str, object]:
    """Counts that the engine does not know are null, not zero."""
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.completion_tokens,
        "total_tokens": (stats.prompt_tokens or 0) + (stats.completion_tokens or 0),
    }


def _metadata(pcm: bytes, sample_rate: int, audio_format: AudioFormat) -> dict[str, object]:
    return {"format": audio_format, "sample_rate_hz": sample_rate, "frame_count": len(pcm) // 2, "channels": 1}


def _sound(pcm: bytes, sample_rate: int, audio_format: AudioFormat) -> bytes:
    """16-bit mono PCM as it is, or as a complete WAV file."""
    if audio_format == "pcm":
        return pcm
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setparams((1, 2, sample_rate, len(pcm) // 2, "NONE", ""))
        wav.writeframes(pcm)
    return file.getvalue()


def _sse(chunk: Mapping[str, object]) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode("ascii") + b"\n\n"


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"
