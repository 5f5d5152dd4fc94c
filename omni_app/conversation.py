"""The vocabulary of the house: what a visitor says, what an engine answers. Frozen data, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Kind = Literal["text", "image", "audio", "video"]
Role = Literal["system", "user", "assistant"]
EndReason = Literal["stop", "length", "cancelled"]


def clean(text: str) -> str:
    """Half surrogate pairs, which JSON can carry and UTF-8 cannot, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a message: a text, or a media file that `omni_app.media` has checked and normalised.

    For `text` only `text` is set. For the others `path` names a file on this machine: a picture is JPEG or PNG,
    a sound 16 kHz mono 16-bit WAV, a clip the visitor's own container (MP4, WebM, MOV or MKV).
    """

    kind: Kind
    text: str = ""
    path: Path | None = None
    name: str = ""
    """What the visitor called the file; for display only, never a path to open."""
    mime: str = ""
    seconds: float | None = None
    width: int | None = None
    height: int | None = None
    has_sound: bool = False
    note: str = ""
    """What the visitor should know of a file that was taken only in part, as one sentence; mostly empty."""


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The text parts, joined by newlines."""
        return "\n".join(part.text for part in self.parts if part.kind == "text")

    @property
    def media(self) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if part.kind != "text")

    @classmethod
    def of(cls, role: Role, text: str, *media: Part) -> Message:
        """A message of media parts followed by one text part (omitted when empty)."""
        return cls(role, media + ((Part("text", text),) if text else ()))


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """What one reply should be like. `None` leaves the choice to the engine."""

    speech: bool = True
    voice: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    extra: Mapping[str, object] = field(default_factory=dict)
    """Engine-specific request fields, passed on untouched (vllm-omni's `sampling_params_list`, ...)."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What the engine understood of the sound in the last user message (a transcript; may come before any text)."""

    text: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    text: str


@dataclass(frozen=True, slots=True)
class AudioDelta:
    """A piece of speech: signed 16-bit little-endian mono PCM at `sample_rate` Hz."""

    pcm: bytes
    sample_rate: int

    @property
    def seconds(self) -> float:
        return len(self.pcm) / 2 / self.sample_rate


@dataclass(frozen=True, slots=True)
class ReplyStats:
    """Counts that only the engine knows; at most one per reply, before `ReplyEnd`."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    stages: Mapping[str, object] = field(default_factory=dict)
    """Per-stage metrics as the engine reports them, for the curious."""


@dataclass(frozen=True, slots=True)
class ReplyEnd:
    """Always the last event of a reply that did not fail. `length` means that the token limit cut the answer."""

    reason: EndReason = "stop"


Event = Heard | TextDelta | AudioDelta | ReplyStats | ReplyEnd
