"""The engine that talks to any server of the OpenAI style: SGLang-Omni, TensorRT Edge-LLM, vLLM, OpenAI itself, ...

What its model takes and gives is found by asking it at the start (`probing`); how it wants to be asked is its dialect
(`dialects`, with the sources).
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from textwrap import shorten

import anyio.to_thread

from omni_app import wire
from omni_app.conversation import Event, Kind, Message, Part, ReplyOptions
from omni_app.engines.base import KIND_NAMES, EngineStatus, check_kinds, named_kinds, spelled
from omni_app.engines.dialects import OWN, Dialect, recognise, translated
from omni_app.engines.probing import Abilities, abilities
from omni_app.errors import BadRequest, EngineUnavailable, OmniError
from omni_app.settings import Settings

NAME = "openai-compatible"
PROBE_S = 60.0
"""Longest wait for the answer to one probe; the first request of a server may compile its kernels."""
MOST_WORDS = 50
"""Characters of a server's refusal that the header of the page repeats."""


@dataclass(frozen=True, slots=True)
class Served:
    """What was found at the address."""

    model: str
    dialect: Dialect
    can: Abilities
    others: int = 0
    """How many more models the server lists."""


class OpenAICompatibleEngine:
    """One streaming request per reply; closing a reply closes its connection. A server that could not be reached, or
    lost its model, is asked again with the next reply."""

    def __init__(self, settings: Settings, *, tries: int = 10, pause_s: float = 1.0, probe_s: float = PROBE_S) -> None:
        """`tries` and `pause_s`: how often `start` looks for the server, and seconds between two times."""
        self._server = wire.Connection(settings)
        self._wanted = settings.endpoint_model.strip()
        self._tries, self._pause_s, self._probe_s = tries, pause_s, probe_s
        self._served: Served | None = None

    async def start(self) -> None:
        await self._look()

    def status(self) -> EngineStatus:
        if self._served is None:
            return EngineStatus(NAME, self._wanted, ready=False, why=self._server.trouble or "", speaks=False)
        can = self._served.can
        return EngineStatus(
            name=NAME,
            model=_shown(self._served.model),
            ready=self._server.trouble is None,
            why=self._server.trouble or _told(self._served, self._server.shown),
            voices=can.voices,
            modalities=can.modalities,
            speaks=can.speaks,
        )

    async def reply(self, messages: Sequence[Message], options: ReplyOptions) -> AsyncGenerator[Event, None]:
        """Raises BadRequest before anything is sent when the model takes no such input."""
        served = self._served or await self._look()
        check_kinds(messages[-1].media, served.can.modalities)
        _check_voice(options, served.can)
        write = partial(_written, messages, options, served)
        content, max_tokens = await anyio.to_thread.run_sync(write)
        try:
            async with aclosing(self._server.reply(content, max_tokens)) as events:
                async for event in events:
                    yield event
        except wire.NotServed as error:
            self._served = None
            raise EngineUnavailable(f"{error} It was asked for the model {served.model}. Please retry.") from error

    async def close(self) -> None:
        await self._server.close()

    async def _look(self) -> Served:
        """Raises EngineUnavailable when there is no server, or none that can be used."""
        try:
            self._served = await self._asked()
        except OmniError as error:
            self._server.trouble = str(error)
            raise EngineUnavailable(str(error)) from error
        self._server.trouble = None
        return self._served

    async def _asked(self) -> Served:
        entry, others = await self._entry(wire.MODELS)
        dialect = await recognise(self._server, entry)
        if dialect is OWN:  # it lists its model before that is loaded, and cannot tell its voices until then
            entry, others = await self._entry("/health")
        self._server.trouble = f"Asking {dialect.name} at {self._server.shown} what it can do."
        can = await abilities(self._server, dialect, entry, within_s=self._probe_s)
        return Served(str(entry["id"]), dialect, can, others)

    async def _entry(self, ready: str) -> tuple[Mapping[str, object], int]:
        """The model's entry, and how many others there are, once the page `ready` answers."""
        await self._server.wait_until_ready(ready, tries=self._tries, pause_s=self._pause_s)
        return await self._server.listed_model()


def _shown(model: str) -> str:
    """A model that is called by its path on the server, as llama.cpp does, is shown by its file name."""
    return model.rpartition("/")[2] if model.startswith("/") else model


def _told(served: Served, address: str) -> str:
    can = served.can
    sentences = [f"Answers come from {served.dialect.name} at {address}; it takes {named_kinds(can.modalities)}."]
    refused = [
        f"{KIND_NAMES[kind]} ({shorten(can.refusals[kind], MOST_WORDS, placeholder='…')})"
        for kind in KIND_NAMES
        if kind in can.refusals
    ]
    if refused:
        sentences.append(f"It refuses {', '.join(refused)}.".replace("text (", "text without speech ("))
    if not can.speaks:
        sentences.append(f"It does not speak: {can.refusals.get('speech', 'its model has no voice.')}")
    if served.others:
        sentences.append(f"{served.others} more of its models can be chosen with OMNI_ENDPOINT_MODEL.")
    return " ".join(sentences)


def _check_voice(options: ReplyOptions, can: Abilities) -> None:
    """Raises BadRequest. A server that does not tell its voices has the last word."""
    asked = options.voice
    if asked and options.speech and can.speaks and can.voices and asked.lower() not in map(str.lower, can.voices):
        raise BadRequest(f'The model has no voice "{asked[:50]}". It has: {", ".join(can.voices)}.')


def _written(messages: Sequence[Message], options: ReplyOptions, served: Served) -> tuple[bytes, int | None]:
    """The request body, and the token limit where the server hides that it cut an answer. Reads media files: not for
    the event loop."""
    can, dialect = served.can, served.dialect
    options = replace(
        options, speech=options.speech and can.speaks, voice=spelled(options.voice, can.voices),
        max_tokens=options.max_tokens or _default_limit(can.context),
    )  # fmt: skip
    seen = [_without(message, can.modalities) for message in messages]
    body = wire.build_request(seen, options, model=served.model, read=wire.content_of)
    hides = dialect.speech == "vllm-omni"
    return json.dumps(translated(body, options, dialect)).encode("ascii"), wire.token_limit(body) if hides else None


def _default_limit(context: int | None) -> int:
    """Half the context at most: a limit that leaves no room for the question is refused."""
    return min(wire.DEFAULT_MAX_TOKENS, context // 2) if context else wire.DEFAULT_MAX_TOKENS


def _without(message: Message, modalities: Collection[Kind]) -> Message:
    """The message with a note in place of media that this model does not take; they were shown to another one."""
    if message.role != "user":
        return message
    return replace(message, parts=tuple(_noted(part, modalities) for part in message.parts))


def _noted(part: Part, modalities: Collection[Kind]) -> Part:
    return part if part.kind in modalities else Part("text", f"[{KIND_NAMES[part.kind]}, which you cannot perceive]")
