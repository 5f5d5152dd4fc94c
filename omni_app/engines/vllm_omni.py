"""The engine that talks to a vllm-omni server (`vllm serve <Qwen3-Omni> --omni`) over HTTP, wherever it runs."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anyio.to_thread

from omni_app import wire
from omni_app.conversation import Event, Kind, Message, Part, ReplyOptions
from omni_app.engines.base import EngineStatus
from omni_app.errors import BadRequest, EngineUnavailable, OmniError
from omni_app.settings import Settings

NAME = "vllm-omni"
PUBLISHED_VOICES = ("chelsie", "ethan", "aiden")
"""The speakers of the published Qwen3-Omni checkpoints, for when a server's own list cannot be read."""
ALL_KINDS = frozenset[Kind]({"text", "image", "audio", "video"})


@dataclass(frozen=True, slots=True)
class Served:
    """What a server said about itself."""

    model: str
    voices: tuple[str, ...] = PUBLISHED_VOICES
    voices_known: bool = False
    """False when the voices are only the published ones; then the server has the last word on a voice."""
    modalities: frozenset[Kind] = ALL_KINDS
    speaks: bool = True
    context: int | None = None
    """Most tokens of prompt and answer together; the server refuses a token limit above it."""


class VllmOmniEngine:
    """One streaming request per reply. Closing a reply closes its connection, on which the server drops all stages.

    A server that could not be reached is asked again with the next reply, so it may come up later.
    """

    def __init__(self, settings: Settings, *, tries: int = 10, pause_s: float = 1.0) -> None:
        """`tries` and `pause_s`: how often `start` asks for the server's health, and seconds between two times."""
        self._server = wire.Connection(settings, start_with="vllm serve <model> --omni --port {port}")
        self._lend = partial(_lent, settings.local_media)
        self._tries = tries
        self._pause_s = pause_s
        self._served: Served | None = None

    async def start(self) -> None:
        try:
            await self._server.wait_until_ready("/health", tries=self._tries, pause_s=self._pause_s)
            await self._ask_what_is_served()
        except OmniError as error:
            self._server.trouble = str(error)
            raise
        self._server.trouble = None

    def status(self) -> EngineStatus:
        served = self._served or Served("")
        why = f"Answers come from {self._server.shown}."
        if not served.voices_known:
            why += " Its list of voices cannot be read; the published ones are offered."
        return EngineStatus(
            name=NAME,
            model=served.model,
            ready=self._server.trouble is None,
            why=self._server.trouble or why,
            voices=served.voices,
            modalities=served.modalities,
            speaks=served.speaks,
        )

    async def reply(self, messages: Sequence[Message], options: ReplyOptions) -> AsyncGenerator[Event, None]:
        """Raises EngineFailed too when no event comes for `silence_seconds`."""
        served = self._served or await self._ask_what_is_served()
        _check_voice(options, served)
        write = partial(_written, messages, _within(served.context, options), served.model, self._lend)
        content, max_tokens = await anyio.to_thread.run_sync(write)
        try:
            async with aclosing(self._server.reply(content, max_tokens)) as events:
                async for event in events:
                    yield event
        except wire.NotServed as error:
            # Another model may have taken the address since; the next reply asks again.
            self._served = None
            raise EngineUnavailable(f"{error} It was asked for the model {served.model}. Please retry.") from error

    async def close(self) -> None:
        await self._server.close()

    async def _ask_what_is_served(self) -> Served:
        entry, _ = await self._server.listed_model()
        self._served = await anyio.to_thread.run_sync(_served, entry)
        return self._served


def _check_voice(options: ReplyOptions, served: Served) -> None:
    """Raises BadRequest for a voice that the server surely does not have."""
    asked = options.voice
    if asked and options.speech and served.voices_known and asked.lower() not in map(str.lower, served.voices):
        raise BadRequest(f'The model has no voice "{asked[:50]}". It has: {", ".join(served.voices)}.')


def _within(context: int | None, options: ReplyOptions) -> ReplyOptions:
    asked = options.max_tokens or wire.DEFAULT_MAX_TOKENS
    return options if context is None else replace(options, max_tokens=min(asked, context))


def _written(
    messages: Sequence[Message], options: ReplyOptions, model: str, lend: Callable[[Part], str | None]
) -> tuple[bytes, int | None]:
    """The request body and its token limit. Reads media files: not for the event loop."""
    body = wire.build_request(messages, options, model=model, read=wire.content_of, lend=lend)
    return json.dumps(body).encode("ascii"), wire.token_limit(body)


def _lent(folder: Path | None, part: Part) -> str | None:
    """The `file://` address of a part that the server may read itself. Links are followed first, as the server does
    (`MediaConnector._load_file_url` in vLLM), so that nothing outside the folder is named."""
    if folder is None or part.path is None:
        return None
    path = part.path.resolve()
    return path.as_uri() if path.is_relative_to(folder.expanduser().resolve()) and path.is_file() else None


def _served(entry: Mapping[str, object]) -> Served:
    """What a `/v1/models` entry tells. Our own API adds voices and modalities; a vllm-omni server's voices are read
    from the model's folder, when it is on this machine."""
    model = str(entry["id"])
    said = entry.get("voices")
    voices = tuple(map(str, said)) if isinstance(said, list) else _voices_in(str(entry.get("root") or model))
    known = entry.get("modalities")
    context = entry.get("max_model_len")
    return Served(
        model=model,
        voices=PUBLISHED_VOICES if voices is None else voices,
        voices_known=voices is not None,
        modalities=frozenset(kind for kind in ALL_KINDS if kind in known) if isinstance(known, list) else ALL_KINDS,
        speaks=entry.get("speaks") is not False,
        context=context if isinstance(context, int) and context > 0 else None,
    )


def _voices_in(folder: str) -> tuple[str, ...] | None:
    """The names in `talker_config.speaker_id` of a model's config.json; None when there is none that we can read."""
    try:
        config = json.loads((Path(folder) / "config.json").read_bytes())
        return tuple(config["talker_config"]["speaker_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
