"""What every engine promises, and the registry to pick one from."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from omni_app.conversation import Event, Kind, Message, Part, ReplyOptions
from omni_app.errors import BadRequest
from omni_app.settings import Settings

KIND_NAMES: dict[Kind, str] = {"text": "text", "image": "pictures", "audio": "sound", "video": "clips"}


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What an engine is and can do right now; cheap to read, so the page may ask every second."""

    name: str
    model: str
    ready: bool
    why: str
    """One sentence: what it is doing, or why it is not ready, or what limits it on this machine."""
    voices: tuple[str, ...] = ()
    modalities: frozenset[Kind] = field(default_factory=lambda: frozenset[Kind]({"text"}))
    """Kinds of input it understands."""
    speaks: bool = True


class Engine(Protocol):
    """One model, or one house of models, that answers conversations.

    Several replies may run at once. An engine's methods are all called on one event loop.
    """

    async def start(self) -> None:
        """Load or connect, and warm up. Raises EngineUnavailable."""
        ...

    def reply(self, messages: Sequence[Message], options: ReplyOptions) -> AsyncGenerator[Event, None]:
        """Stream the answer to the last message. Closing the iterator (`aclose`) cancels the reply, and all work for
        it stops within one second. Speech and text deltas interleave in the order they arrive.

        Raises BadRequest, EngineUnavailable, EngineAtCapacity or EngineFailed; events before the error stay valid.
        """
        ...

    def status(self) -> EngineStatus: ...

    async def close(self) -> None:
        """Release everything; safe to call twice, and on an engine that never started."""
        ...


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """An engine that can be chosen by name; `create` imports its module only when called."""

    name: str
    summary: str
    needs: str
    create: Callable[[Settings], Engine]


def check_kinds(parts: Iterable[Part], modalities: Collection[Kind]) -> None:
    """Raises BadRequest for a part of a kind that an engine with these `modalities` does not take."""
    for part in parts:
        if part.kind not in modalities:
            name = f" ({part.name})" if part.name else ""
            raise BadRequest(
                f"The model that answers now does not take {KIND_NAMES[part.kind]}{name}, only "
                f"{named_kinds(modalities)}. Send the message without that file, or choose another engine."
            )


def named_kinds(modalities: Collection[Kind]) -> str:
    """The kinds as a list for people, for example `text, pictures and sound`."""
    *first, last = [name for kind, name in KIND_NAMES.items() if kind in modalities] or ["nothing"]
    return f"{', '.join(first)} and {last}" if first else last


def spelled(voice: str | None, voices: Iterable[str]) -> str | None:
    """The engine's own spelling of a voice: some tell capitals from small letters. A voice that is not among those that
    it names is its own to refuse, since it may not know them all."""
    return next((one for one in voices if voice and one.lower() == voice.lower()), voice)


def check_numbers(options: ReplyOptions) -> None:
    """Raises BadRequest for a token limit or a temperature that no engine takes."""
    if options.max_tokens is not None and options.max_tokens < 1:
        raise BadRequest(f"max_tokens is {options.max_tokens}; it must be at least 1.")
    if options.temperature is not None and not 0 <= options.temperature <= 2:
        raise BadRequest(f"temperature is {options.temperature}; it must be between 0 and 2.")
