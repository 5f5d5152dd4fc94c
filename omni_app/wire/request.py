"""A request body as a caller of our API sends it, read into our words. Every fault is a BadRequest naming its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from omni_app.conversation import Kind, ReplyOptions, Role, clean
from omni_app.errors import BadRequest

AudioFormat = Literal["pcm", "wav"]

FORMATS: dict[str, AudioFormat] = {"pcm": "pcm", "pcm16": "pcm", "wav": "wav"}
ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
URL_PARTS: dict[str, Kind] = {"image_url": "image", "audio_url": "audio", "video_url": "video"}
MOST_TOKENS = 2**31 - 1
SEEDS = (-(2**63), 2**63 - 1)


@dataclass(frozen=True, slots=True)
class MediaRef:
    """A media part that has not been looked at yet: what the caller says it is, and its data URL."""

    kind: Kind
    url: str


@dataclass(frozen=True, slots=True)
class MessageSpec:
    role: Role
    parts: tuple[str | MediaRef, ...]


@dataclass(frozen=True, slots=True)
class ChatRequest:
    model: str
    """Empty when the caller left it out."""
    messages: tuple[MessageSpec, ...]
    options: ReplyOptions
    stream: bool = False
    audio_format: AudioFormat = "wav"
    text: bool = True
    """Whether the caller wants to read the answer too; False for `modalities: ["audio"]`."""
    include_usage: bool = False
    stage_metrics: bool = False


def parse_request(body: object) -> ChatRequest:
    """Read and check a decoded JSON body. Fields that we do not know are ignored. Raises BadRequest."""
    if not isinstance(body, Mapping):
        raise BadRequest("The request body must be a JSON object.")
    modalities = _modalities(body)
    stage_metrics = _flag(body, "return_stage_metrics")
    return ChatRequest(
        model=_string(body, "model") or "",
        messages=_messages(body.get("messages")),
        options=ReplyOptions(
            speech="audio" in modalities,
            voice=_string(body, "voice") or _string(body, "speaker"),
            max_tokens=_max_tokens(body),
            temperature=_number(body, "temperature", 0.0, 2.0),
            seed=_whole(body, "seed", *SEEDS),
            extra={"return_stage_metrics": True} if stage_metrics else {},
        ),
        stream=_flag(body, "stream"),
        audio_format=_audio_format(body),
        text="text" in modalities,
        include_usage=_flag(_object(body, "stream_options"), "include_usage"),
        stage_metrics=stage_metrics,
    )


def _messages(given: object) -> tuple[MessageSpec, ...]:
    if not isinstance(given, list) or not given:
        raise BadRequest('"messages" must be a list with at least one message.')
    messages = tuple(_message(one, f"messages[{index}]") for index, one in enumerate(given))
    if messages[-1].role != "user":
        raise BadRequest('The last of "messages" must come from the user: it is the one that is answered.')
    return messages


def _message(given: object, at: str) -> MessageSpec:
    if not isinstance(given, Mapping):
        raise BadRequest(f"{at} must be an object with role and content.")
    role = ROLES.get(_name(given.get("role")))
    if role is None:
        raise BadRequest(f'{at}: the role must be "system", "user" or "assistant".')
    parts = _content(given.get("content"), at)
    if role != "user" and any(isinstance(part, MediaRef) for part in parts):
        raise BadRequest(f"{at}: only messages of the user may carry media.")
    if role == "user" and not parts:
        raise BadRequest(f"{at} is empty.")
    return MessageSpec(role, parts)


def _content(given: object, at: str) -> tuple[str | MediaRef, ...]:
    if given is None:
        return ()
    if isinstance(given, str):
        return (clean(given),) if given.strip() else ()
    if not isinstance(given, list):
        raise BadRequest(f"{at}.content must be a text or a list of parts.")
    parts = (_part(one, f"{at}.content[{index}]") for index, one in enumerate(given))
    return tuple(part for part in parts if part != "")


def _part(given: object, at: str) -> str | MediaRef:
    kind = _name(given.get("type")) if isinstance(given, Mapping) else ""
    if not isinstance(given, Mapping) or not kind:
        raise BadRequest(f"{at} must be an object with a type.")
    if kind == "text":
        if not isinstance(given.get("text"), str):
            raise BadRequest(f"{at}.text must be a text.")
        return clean(given["text"]) if given["text"].strip() else ""
    if kind in URL_PARTS:
        return MediaRef(URL_PARTS[kind], _url(given.get(kind), f"{at}.{kind}"))
    if kind == "input_audio":
        return _input_audio(given.get(kind), f"{at}.{kind}")
    raise BadRequest(
        f'{at}: the type "{clean(kind)[:40]}" is not known here. '
        "Known are text, image_url, audio_url, video_url and input_audio."
    )


def _url(given: object, at: str) -> str:
    url = given.get("url") if isinstance(given, Mapping) else given
    if not isinstance(url, str) or not url:
        raise BadRequest(f"{at}.url must be a data URL.")
    if not url[:5].lower() == "data:":
        raise BadRequest(f"{at}: addresses are never fetched from here. Send the file itself as a data URL.")
    return url


def _input_audio(given: object, at: str) -> MediaRef:
    data = given.get("data") if isinstance(given, Mapping) else None
    if not isinstance(given, Mapping) or not isinstance(data, str) or not data:
        raise BadRequest(f"{at}.data must be the sound in base64.")
    suffix = given.get("format", "wav")
    if not isinstance(suffix, str) or not suffix.isalnum() or len(suffix) > 8:
        raise BadRequest(f'{at}.format must be a short name like "wav" or "mp3".')
    return MediaRef("audio", data if data.startswith("data:") else f"data:audio/{suffix};base64,{data}")


def _modalities(body: Mapping[str, object]) -> frozenset[str]:
    given = body.get("modalities")
    if given is None:
        return frozenset({"text", "audio"})
    if not isinstance(given, list) or not given or not all(isinstance(one, str) for one in given):
        raise BadRequest('"modalities" must be a list with "text", "audio" or both.')
    unknown = sorted(set(given) - {"text", "audio"})
    if unknown:
        raise BadRequest(f'"modalities": {", ".join(unknown)[:80]} cannot be answered with; "text" and "audio" can.')
    return frozenset(given)


def _audio_format(body: Mapping[str, object]) -> AudioFormat:
    given = _object(body, "audio").get("format")
    if given is None:
        return "wav"
    found = FORMATS.get(_name(given))
    if found is None:
        raise BadRequest('"audio.format" must be "wav", "pcm" or "pcm16"; other formats are not made here.')
    return found


def _max_tokens(body: Mapping[str, object]) -> int | None:
    given = _whole(body, "max_tokens", 1, MOST_TOKENS)
    alias = _whole(body, "max_completion_tokens", 1, MOST_TOKENS)
    return alias if given is None else given


def _whole(body: Mapping[str, object], key: str, low: int, high: int) -> int | None:
    given = body.get(key)
    if given is None:
        return None
    if not isinstance(given, int) or isinstance(given, bool) or not low <= given <= high:
        raise BadRequest(f'"{key}" must be a whole number from {low} to {high}.')
    return given


def _number(body: Mapping[str, object], key: str, low: float, high: float) -> float | None:
    given = body.get(key)
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not low <= given <= high:
        raise BadRequest(f'"{key}" must be a number from {low:g} to {high:g}.')
    return float(given)


def _flag(body: Mapping[str, object], key: str) -> bool:
    given = body.get(key)
    if not isinstance(given, bool | None):
        raise BadRequest(f'"{key}" must be true or false.')
    return bool(given)


def _string(body: Mapping[str, object], key: str) -> str | None:
    given = body.get(key)
    if not isinstance(given, str | None):
        raise BadRequest(f'"{key}" must be a text.')
    return clean(given) if given else None


def _object(body: Mapping[str, object], key: str) -> Mapping[str, object]:
    given = body.get(key)
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise BadRequest(f'"{key}" must be an object.')
    return given


def _name(given: object) -> str:
    return given if isinstance(given, str) else ""
