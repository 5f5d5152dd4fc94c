"""The engine that talks to a vllm-omni server (`vllm serve <Qwen3-Omni> --omni`) over HTTP, wherever it runs."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anyio.to_thread
import httpx

from omni_app import wire
from omni_app.conversation import Event, Kind, Message, Part, ReplyOptions
from omni_app.engines.base import EngineStatus
from omni_app.errors import BadRequest, EngineFailed, EngineUnavailable, MediaRejected, OmniError
from omni_app.settings import Settings

NAME = "vllm-omni"
PUBLISHED_VOICES = ("chelsie", "ethan", "aiden")
"""The speakers of the published Qwen3-Omni checkpoints, for when a server's own list cannot be read."""
ALL_KINDS = frozenset[Kind]({"text", "image", "audio", "video"})
CONNECT_S = 10.0
LOOPBACK = ("localhost", "127.0.0.1", "::1")


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
        self._endpoint = settings.endpoint.strip().rstrip("/").removesuffix("/v1")
        self._shown = re.sub(r"//[^/@]*@", "//", self._endpoint)
        self._key = settings.api_key.get_secret_value().strip()
        self._silence_s = settings.silence_seconds
        self._tries = tries
        self._pause_s = pause_s
        self._client: httpx.AsyncClient | None = None
        self._served: Served | None = None
        self._trouble: str | None = "Not connected yet."

    async def start(self) -> None:
        try:
            await self._wait_until_healthy()
            await self._ask_what_is_served()
        except OmniError as error:
            self._trouble = str(error)
            raise
        self._trouble = None

    def status(self) -> EngineStatus:
        served = self._served or Served("")
        why = f"Answers come from {self._shown}."
        if not served.voices_known:
            why += " Its list of voices cannot be read; the published ones are offered."
        return EngineStatus(
            name=NAME,
            model=served.model,
            ready=self._trouble is None,
            why=self._trouble or why,
            voices=served.voices,
            modalities=served.modalities,
            speaks=served.speaks,
        )

    async def reply(self, messages: Sequence[Message], options: ReplyOptions) -> AsyncGenerator[Event, None]:
        """Raises EngineFailed too when no event comes for `silence_seconds`."""
        served = self._served or await self._ask_what_is_served()
        _check_voice(options, served)
        write = partial(_written, messages, _within(served.context, options), served.model)
        content, max_tokens = await anyio.to_thread.run_sync(write)
        async with aclosing(self._events(content, max_tokens)) as events:
            while True:
                try:
                    async with asyncio.timeout(self._silence_s):
                        event = await anext(events)
                except StopAsyncIteration:
                    return
                except TimeoutError as error:
                    raise EngineFailed(
                        f"The model's server went silent: nothing came for {self._silence_s:g} seconds "
                        "(silence-seconds). What was said stays; please retry."
                    ) from error
                yield event

    async def close(self) -> None:
        client, self._client = self._client, None
        self._trouble = "Closed."
        if client is not None:
            await client.aclose()

    async def _events(self, content: bytes, max_tokens: int | None) -> AsyncGenerator[Event, None]:
        decoder = wire.ReplyDecoder(max_tokens)
        try:
            async with self._http().stream("POST", "/v1/chat/completions", content=content) as response:
                if response.status_code != 200:
                    raise self._refused(response.status_code, await response.aread())
                self._trouble = None
                if response.headers.get("content-type", "").startswith("application/json"):
                    for event in wire.decode_body(_json(await response.aread()), max_tokens):
                        yield event
                    return
                async for data in response.aiter_bytes():
                    for event in decoder.feed(data):
                        yield event
                    if decoder.done:
                        return
        except (httpx.ReadError, httpx.RemoteProtocolError):
            pass  # the connection broke; the decoder knows whether the answer was over
        except httpx.RequestError as error:
            raise self._unreachable(error) from error
        for event in decoder.close():
            yield event

    async def _wait_until_healthy(self) -> None:
        trouble: OmniError = EngineUnavailable(f"No server was looked for at {self._shown}.")
        for attempt in range(self._tries):
            if attempt:
                await asyncio.sleep(self._pause_s)
            try:
                response = await self._http().get("/health", timeout=CONNECT_S)
            except httpx.RequestError as error:
                trouble = self._unreachable(error)
                continue
            if response.status_code == 200:
                return
            trouble = self._refused(response.status_code, response.content)
            if response.status_code != 503:
                break
        raise EngineUnavailable(str(trouble))

    async def _ask_what_is_served(self) -> Served:
        try:
            response = await self._http().get("/v1/models", timeout=CONNECT_S)
        except httpx.RequestError as error:
            raise self._unreachable(error) from error
        if response.status_code != 200:
            raise self._refused(response.status_code, response.content)
        listed = _json(response.content)
        entries = listed.get("data") if isinstance(listed, Mapping) else None
        entry = entries[0] if isinstance(entries, list) and entries else None
        if not isinstance(entry, Mapping) or not isinstance(entry.get("id"), str):
            raise EngineUnavailable(f"The server at {self._shown} lists no model; it is not a vllm-omni server.")
        self._served = await anyio.to_thread.run_sync(_served, entry)
        return self._served

    def _http(self) -> httpx.AsyncClient:
        """Made on first use, on the loop that then owns it. Raises EngineUnavailable when the address is none."""
        if self._client is None:
            base = _url(self._endpoint)
            headers = {b"content-type": b"application/json"}
            headers |= {b"authorization": f"Bearer {self._key}".encode()} if self._key else {}
            # The wait for an event has a clock of its own, which a keep-alive comment does not reset.
            timeout = httpx.Timeout(None, connect=CONNECT_S, write=self._silence_s)
            # A proxy of the environment must not stand between us and our own machine.
            proxies = base.host not in LOOPBACK
            self._client = httpx.AsyncClient(base_url=base, headers=headers, timeout=timeout, trust_env=proxies)
        return self._client

    def _refused(self, status: int, body: bytes) -> OmniError:
        error = wire.error_from(status, body, server=f"The server at {self._shown}")
        if isinstance(error, EngineUnavailable):
            self._trouble = str(error)
        if status == 404 and self._served is not None:
            # Another model may have taken the address since; the next reply asks again.
            model, self._served = self._served.model, None
            return EngineUnavailable(f"{error} It was asked for the model {model}. Please retry.")
        return error

    def _unreachable(self, error: httpx.RequestError) -> EngineUnavailable:
        what = "does not answer in time" if isinstance(error, httpx.TimeoutException) else "cannot be reached"
        self._trouble = (
            f"The model's server at {self._shown} {what}. Start it there with `vllm serve <model> --omni --port "
            f"{self._http().base_url.port or 80}`, or set OMNI_ENDPOINT to where it runs."
        )
        return EngineUnavailable(self._trouble)


def _url(endpoint: str) -> httpx.URL:
    try:
        url = httpx.URL(endpoint)
    except httpx.InvalidURL as error:
        raise EngineUnavailable(f"OMNI_ENDPOINT is not an address: {error}.") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise EngineUnavailable("OMNI_ENDPOINT must be an address like http://host:8091.")
    return url


def _check_voice(options: ReplyOptions, served: Served) -> None:
    """Raises BadRequest for a voice that the server surely does not have."""
    asked = options.voice
    if asked and options.speech and served.voices_known and asked.lower() not in map(str.lower, served.voices):
        raise BadRequest(f'The model has no voice "{asked[:50]}". It has: {", ".join(served.voices)}.')


def _within(context: int | None, options: ReplyOptions) -> ReplyOptions:
    asked = options.max_tokens or wire.DEFAULT_MAX_TOKENS
    return options if context is None else replace(options, max_tokens=min(asked, context))


def _written(messages: Sequence[Message], options: ReplyOptions, model: str) -> tuple[bytes, int | None]:
    """The request body and its token limit. Reads media files: not for the event loop."""
    body = wire.build_request(messages, options, model=model, read=_content)
    return json.dumps(body).encode("ascii"), wire.token_limit(body)


def _content(part: Part) -> bytes:
    try:
        return (part.path or Path()).read_bytes()
    except OSError as error:
        name = part.name or part.kind
        raise MediaRejected(f"{name} cannot be read any more on this machine. Please attach it again.") from error


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


def _json(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise EngineFailed("The model's server sent an answer that is not JSON.") from error
