"""What a server can do: read from its own description where it has one, else asked by tiny requests, all at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import get_args

import anyio.to_thread

from omni_app import wire
from omni_app.conversation import AudioDelta, Event, Kind, Message, ReplyOptions
from omni_app.engines.dialects import EDGE_LLM, OWN, Dialect, translated
from omni_app.errors import EngineAtCapacity, EngineUnavailable, OmniError
from omni_app.media.samples import sample
from omni_app.scratch import scratch
from omni_app.wire.connection import CHAT, parsed

QUESTION = "Say hello."
TEXT_TOKENS = 1
SPEECH_TOKENS = 16
"""Enough that a talker has something to say."""
KINDS: tuple[Kind, ...] = get_args(Kind)
MEDIA: tuple[Kind, ...] = ("image", "audio", "video")


@dataclass(frozen=True, slots=True)
class Abilities:
    modalities: frozenset[Kind]
    speaks: bool
    voices: tuple[str, ...] = ()
    said: bool = False
    """Whether the server has told all this itself."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Kind of input, or `speech` -> in which words a probe was refused."""
    context: int | None = None
    """Most tokens of prompt and answer together, where it is known."""


async def abilities(
    server: wire.Connection, dialect: Dialect, entry: Mapping[str, object], *, within_s: float
) -> Abilities:
    """What the model of this `/v1/models` entry can do. Raises EngineUnavailable when it answers no request at all;
    `within_s` bounds each probe, and all run at the same time."""
    if dialect is OWN:
        return _own(entry)
    described = await _edge_llm(server) if dialect is EDGE_LLM else None
    return described or await _probed(server, dialect, entry, within_s)


def _own(entry: Mapping[str, object]) -> Abilities:
    return Abilities(
        _kinds(entry.get("modalities")), entry["speaks"] is True, _names(entry.get("voices")), said=True,
        context=_whole(entry.get("max_model_len")),
    )  # fmt: skip


async def _edge_llm(server: wire.Connection) -> Abilities | None:
    """From `/health` and `/v1/voices`; None for a release that does not tell its capabilities there."""
    health = await server.json("/health")
    told = health.get("capabilities") if isinstance(health, Mapping) else None
    if not isinstance(told, Mapping) or not isinstance(told.get("input_modalities"), list):
        return None
    if told.get("chat") is False:
        raise EngineUnavailable(f"The model at {server.shown} is made for speech alone; it does not chat.")
    speaks = told.get("speech") is True
    listed = await server.json("/v1/voices") if speaks else {}
    voices = listed.get("data") if isinstance(listed, Mapping) else None
    names = [one.get("id") for one in voices if isinstance(one, Mapping)] if isinstance(voices, list) else []
    context = _whole(told.get("max_model_len"))
    return Abilities(_kinds(told["input_modalities"]), speaks, _names(names), said=True, context=context)


async def _probed(server: wire.Connection, dialect: Dialect, entry: Mapping[str, object], within_s: float) -> Abilities:
    bodies = await anyio.to_thread.run_sync(partial(_bodies, dialect, str(entry["id"])))
    outcomes = await asyncio.gather(*(_refusal(server, name, body, within_s) for name, body in bodies.items()))
    refusals = {name: refusal for name, refusal in zip(bodies, outcomes, strict=True) if refusal}
    if dialect.speech == "none":
        refusals["speech"] = f"{dialect.name} answers with text only."
    if "text" in refusals and "speech" in refusals:
        raise EngineUnavailable(
            f"{dialect.name} at {server.shown} answers no chat with {entry['id']}: {refusals['text']} "
            "If another of its models should answer, name it in OMNI_ENDPOINT_MODEL."
        )
    return Abilities(
        frozenset(kind for kind in KINDS if kind == "text" or kind not in refusals),
        speaks="speech" not in refusals,
        voices=dialect.voices,
        refusals=refusals,
        context=_whole(entry.get("max_model_len")),
    )


def _bodies(dialect: Dialect, model: str) -> dict[str, bytes]:
    """The probes by what they ask for. Makes files: not for the event loop."""
    with scratch() as folder:
        written: dict[str, bytes] = {
            kind: _body(dialect, model, Message.of("user", QUESTION, sample(kind, folder))) for kind in MEDIA
        }
    written["text"] = _body(dialect, model, Message.of("user", QUESTION))
    if dialect.speech != "none":
        written["speech"] = _body(dialect, model, Message.of("user", QUESTION), speech=True)
    return written


def _body(dialect: Dialect, model: str, message: Message, *, speech: bool = False) -> bytes:
    options = ReplyOptions(speech=speech, max_tokens=SPEECH_TOKENS if speech else TEXT_TOKENS)
    body = wire.build_request([message], options, model=model, read=wire.content_of)
    body |= {"stream": False}
    del body["stream_options"]
    return json.dumps(translated(body, options, dialect)).encode("ascii")


async def _refusal(server: wire.Connection, name: str, content: bytes, within_s: float) -> str:
    """Why the server does not do it; empty when it does. Raises EngineUnavailable when the key is refused."""
    try:
        response = await server.send("POST", CHAT, content, within_s)
    except EngineUnavailable as error:
        return str(error)
    if response.status_code in (401, 403):
        raise server.refused(response.status_code, response.content)
    if response.status_code != 200:
        refusal = server.refused(response.status_code, response.content)
        # A server that is busy with our other probes has not said no; it has the last word when asked in earnest.
        busy = isinstance(refusal, EngineAtCapacity) or (response.status_code == 503 and name != "text")
        return "" if busy else wire.words_in(response.content) or f"HTTP {response.status_code}"
    return _missing(name, response.content)


def _missing(name: str, body: bytes) -> str:
    try:
        events: list[Event] = wire.decode_body(parsed(body))
    except OmniError as error:
        return str(error)
    spoke = any(isinstance(event, AudioDelta) for event in events)
    return "" if name != "speech" or spoke else "Asked for speech, it sent none."


def _kinds(told: object) -> frozenset[Kind]:
    return frozenset(kind for kind in KINDS if isinstance(told, list) and kind in told) | {"text"}


def _names(told: object) -> tuple[str, ...]:
    return tuple(one for one in told if isinstance(one, str)) if isinstance(told, list) else ()


def _whole(told: object) -> int | None:
    return told if isinstance(told, int) and told > 0 else None
