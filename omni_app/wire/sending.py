"""A conversation of ours, written as the request body that a vllm-omni server takes."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from omni_app.conversation import Message, Part, ReplyOptions
from omni_app.errors import MediaRejected

# The stages' defaults of vllm-omni 0.30's deploy/qwen3_omni_moe.yaml. An entry of `sampling_params_list` replaces them
# whole: an entry without max_tokens would stop after 16 tokens, and a talker without its seed now and then drifts into
# fluent nonsense (vllm-omni issue 6090).
THINKER: Mapping[str, object] = {"temperature": 0.0, "max_tokens": 2048}
TALKER: Mapping[str, object] = {
    "seed": 42,
    "temperature": 0.9,
    "top_k": 50,
    "max_tokens": 4096,
    "repetition_penalty": 1.05,
    "stop_token_ids": [2150],
}
CODE2WAV: Mapping[str, object] = {
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": -1,
    "max_tokens": 65536,
    "repetition_penalty": 1.1,
}
DEFAULT_MAX_TOKENS = 2048
URL_PARTS = {"image": "image_url", "audio": "audio_url", "video": "video_url"}
MIMES = {"image": "image/jpeg", "audio": "audio/wav", "video": "video/mp4"}

Read = Callable[[Part], bytes]
Lend = Callable[[Part], str | None]


def _lend_nothing(_: Part) -> None:
    return None


def build_request(
    messages: Sequence[Message], options: ReplyOptions, *, model: str, read: Read, lend: Lend = _lend_nothing
) -> dict[str, object]:
    """The body of a streaming request. `read` gives the bytes of a media part and may raise MediaRejected; `lend` gives
    the address of one that the server reads itself, or None.

    The token limit is always written out, because the server hides that it cut an answer: see `token_limit`.
    """
    body: dict[str, object] = {
        **options.extra,
        "model": model,
        "messages": [_message(one, read, lend) for one in messages if one.parts],
        "stream": True,
        "stream_options": {"include_usage": True},
        "modalities": ["text", "audio"] if options.speech else ["text"],
        **_thinker_sampling(options),
    }
    if options.speech:
        body["audio"] = {"format": "pcm"}
        body |= {"voice": options.voice} if options.voice else {}
    if every_clip_has_sound(messages):
        body["mm_processor_kwargs"] = {**_mapping(options.extra.get("mm_processor_kwargs")), "use_audio_in_video": True}
    if options.extra.get("sampling_params_list"):
        body["sampling_params_list"] = _stages(options)
    return body


def token_limit(body: Mapping[str, object]) -> int | None:
    """The most tokens that the thinker may say under this body; an answer of that length was cut."""
    stages = body.get("sampling_params_list")
    limit = stages[0].get("max_tokens") if isinstance(stages, list) and stages else body.get("max_tokens")
    return limit if isinstance(limit, int) else None


def every_clip_has_sound(messages: Sequence[Message]) -> bool:
    """Whether the server may be asked to listen to the clips: it fails on a request with one silent clip among them."""
    clips = [part for message in messages for part in message.media if part.kind == "video"]
    return bool(clips) and all(clip.has_sound for clip in clips)


def content_of(part: Part) -> bytes:
    """The bytes of a media part, for `read`. Raises MediaRejected when its file is gone."""
    try:
        return (part.path or Path()).read_bytes()
    except OSError as error:
        name = part.name or part.kind
        raise MediaRejected(f"{name} cannot be read any more on this machine. Please attach it again.") from error


def data_url(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def _message(message: Message, read: Read, lend: Lend) -> dict[str, object]:
    # Media in an assistant's turn is its own speech, kept for replay; the model reads its earlier turns as text.
    if message.role != "user" or not message.media:
        return {"role": message.role, "content": message.text}
    return {"role": message.role, "content": [_part(part, read, lend) for part in message.parts]}


def _part(part: Part, read: Read, lend: Lend) -> dict[str, object]:
    if part.kind == "text":
        return {"type": "text", "text": part.text}
    field = URL_PARTS[part.kind]
    url = lend(part) or data_url(part.mime or MIMES[part.kind], read(part))
    return {"type": field, field: {"url": url}}


def _thinker_sampling(options: ReplyOptions) -> dict[str, object]:
    given = {"temperature": options.temperature, "seed": options.seed}
    asked = {key: value for key, value in given.items() if value is not None}
    return {"max_tokens": options.max_tokens or DEFAULT_MAX_TOKENS, **asked}


def _stages(options: ReplyOptions) -> list[dict[str, object]]:
    """`sampling_params_list` as given, every entry completed with what the server would otherwise lose."""
    given = options.extra["sampling_params_list"]
    entries = [_mapping(one) for one in given] if isinstance(given, Sequence) else []
    defaults = ({**THINKER, **_thinker_sampling(options)}, TALKER, CODE2WAV)
    return [{**default, **entry} for default, entry in zip(defaults, entries, strict=False)]


def _mapping(given: object) -> Mapping[str, object]:
    return given if isinstance(given, Mapping) else {}
