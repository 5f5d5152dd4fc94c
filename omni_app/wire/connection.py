"""A model's server over HTTP: one client, its faults in our words, and its streamed answers as events."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

import httpx

from omni_app.conversation import Event
from omni_app.errors import EngineFailed, EngineUnavailable, OmniError
from omni_app.settings import LOOPBACK, Settings
from omni_app.wire.decode import ReplyDecoder, decode_body
from omni_app.wire.faults import error_from

CONNECT_S = 10.0
CHAT = "/v1/chat/completions"
MODELS = "/v1/models"


class NotServed(EngineUnavailable):
    """The server answers, but knows nothing of the model or the address that it was asked for (HTTP 404)."""


class Connection:
    """The server that OMNI_ENDPOINT names. Nothing is sent before the first request."""

    def __init__(self, settings: Settings, *, start_with: str = "") -> None:
        """`start_with`: the command that starts such a server, for the message that it cannot be reached; `{port}` in
        it becomes the port of the address."""
        self._endpoint = settings.endpoint.strip().rstrip("/").removesuffix("/v1")
        self._key = settings.api_key.get_secret_value().strip()
        self._wanted = settings.endpoint_model.strip()
        self._silence_s = settings.silence_seconds
        self._start_with = start_with
        self._client: httpx.AsyncClient | None = None
        self.shown = re.sub(r"//[^/@]*@", "//", self._endpoint)
        """The address without a login that may stand in it."""
        self.trouble: str | None = "Not connected yet."
        """What keeps the server from answering, as far as we know."""

    @property
    def host(self) -> str:
        """Raises EngineUnavailable when the address is none."""
        return _url(self._endpoint).host

    async def wait_until_ready(self, path: str, *, tries: int, pause_s: float) -> httpx.Response:
        """The first answer with status 200; `pause_s` between two tries. Raises EngineUnavailable."""
        self._http()  # an address that is none will be none at the next try too
        trouble: OmniError = EngineUnavailable(f"No server was looked for at {self.shown}.")
        for attempt in range(tries):
            if attempt:
                await asyncio.sleep(pause_s)
            try:
                response = await self.send("GET", path)
            except EngineUnavailable as error:
                trouble = error
                continue
            if response.status_code == 200:
                return response
            trouble = self.refused(response.status_code, response.content)
            if response.status_code != 503:
                break
        raise EngineUnavailable(str(trouble))

    async def send(
        self, method: str, path: str, content: bytes | None = None, timeout_s: float = CONNECT_S
    ) -> httpx.Response:
        """The whole answer, of any status. Raises EngineUnavailable when it is not there after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._http().request(method, path, content=content)
        except (httpx.RequestError, TimeoutError) as error:
            raise self._unreachable(error) from error

    async def json(self, path: str) -> object:
        """Raises what `refused` gives for a status that is not 200, and EngineFailed for what is not JSON."""
        response = await self.send("GET", path)
        if response.status_code != 200:
            raise self.refused(response.status_code, response.content)
        return parsed(response.content)

    async def listed_model(self) -> tuple[Mapping[str, object], int]:
        """The entry of the model to talk to, and how many others there are. Raises EngineUnavailable."""
        return _chosen(await self.json(MODELS), self._wanted, self.shown)

    async def reply(self, content: bytes, max_tokens: int | None) -> AsyncGenerator[Event, None]:
        """The answer to a chat request; for `max_tokens` see ReplyDecoder. Closing it closes the connection.

        Raises what the server's faults mean, and EngineFailed when no event comes for `silence_seconds`.
        """
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

    def refused(self, status: int, body: bytes) -> OmniError:
        """The error behind an answer that is not 200; one that will last becomes our `trouble`."""
        error = error_from(status, body, server=f"The server at {self.shown}")
        if isinstance(error, EngineUnavailable):
            self.trouble = str(error)
        return NotServed(str(error)) if status == 404 else error

    async def close(self) -> None:
        client, self._client = self._client, None
        self.trouble = "Closed."
        if client is not None:
            await client.aclose()

    async def _events(self, content: bytes, max_tokens: int | None) -> AsyncGenerator[Event, None]:
        decoder, answered = ReplyDecoder(max_tokens), False
        try:
            async with self._http().stream("POST", CHAT, content=content) as response:
                answered = True
                if response.status_code != 200:
                    raise self.refused(response.status_code, await response.aread())
                self.trouble = None
                if response.headers.get("content-type", "").startswith("application/json"):
                    for event in decode_body(parsed(await response.aread()), max_tokens):
                        yield event
                    return
                async for data in response.aiter_bytes():
                    for event in decoder.feed(data):
                        yield event
                    if decoder.done:
                        return
        except httpx.RequestError as error:
            # Once it answers, the decoder knows whether the answer was over when the connection broke.
            if not (answered and isinstance(error, httpx.ReadError | httpx.RemoteProtocolError)):
                raise self._unreachable(error) from error
        for event in decoder.close():
            yield event

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

    def _unreachable(self, error: httpx.RequestError | TimeoutError) -> EngineUnavailable:
        late = isinstance(error, httpx.TimeoutException | TimeoutError)
        what = "does not answer in time" if late else "cannot be reached"
        port = self._http().base_url.port or 80
        start = f"Start it there with `{self._start_with.format(port=port)}`" if self._start_with else "Start it there"
        self.trouble = f"The model's server at {self.shown} {what}. {start}, or set OMNI_ENDPOINT to where it runs."
        return EngineUnavailable(self.trouble)


def _chosen(listed: object, wanted: str, server: str) -> tuple[Mapping[str, object], int]:
    """The `/v1/models` entry to talk to, and how many others there are. Raises EngineUnavailable."""
    data = listed.get("data") if isinstance(listed, Mapping) else None
    entries = [one for one in data if isinstance(one, Mapping)] if isinstance(data, list) else []
    named = {one["id"]: one for one in entries if isinstance(one.get("id"), str)}
    if not named:
        raise EngineUnavailable(f"The server at {server} lists no model, so it is no chat server (GET {MODELS}).")
    if wanted and wanted not in named:
        known = ", ".join(sorted(named)[:10])
        raise EngineUnavailable(f"The server at {server} has no model {wanted} (OMNI_ENDPOINT_MODEL). It has: {known}.")
    return named[wanted] if wanted else next(iter(named.values())), len(named) - 1


def parsed(body: bytes) -> object:
    """Raises EngineFailed."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise EngineFailed("The model's server sent an answer that is not JSON.") from error


def _url(endpoint: str) -> httpx.URL:
    try:
        url = httpx.URL(endpoint)
    except httpx.InvalidURL as error:
        raise EngineUnavailable(f"OMNI_ENDPOINT is not an address: {error}.") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise EngineUnavailable("OMNI_ENDPOINT must be an address like http://host:8091.")
    return url
