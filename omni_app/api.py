"""The HTTP API for other programs: chat completions in vllm-omni's dialect, models, health and metrics.

Made of plain Starlette routes, so that any application can carry them. Only JSON bodies are read and a foreign Origin
is refused: a web page of somebody else cannot use the API through a visitor's browser.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import anyio
import psutil
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Message as ASGIMessage
from starlette.types import Receive, Scope, Send

from omni_app import wire
from omni_app.access import Guard, Inbox, address_of, failure, while_connected
from omni_app.conversation import Event, Message, Part, ReplyEnd, ReplyOptions
from omni_app.engines.base import EngineStatus, spelled
from omni_app.errors import BadRequest, EngineFailed, MediaRejected, OmniError, unkept
from omni_app.media import Limits, check_count, check_text, ingest_data_url
from omni_app.meter import ReplyMeter
from omni_app.metrics import Metrics, outcome_of
from omni_app.settings import Settings
from omni_app.turnstile import Turnstile

log = logging.getLogger(__name__)

OVERHEAD = 1.4
"""Bytes of JSON for a byte of media: base64 makes 4 of 3, the rest is room for what is around it."""
TEXT_ROOM = 4 * 10**6
"""Bytes of a request for everything that is not media."""
REQUESTS = "requests"
"""The folder of the data folder that holds the files of requests while they are answered."""
INSTEAD = (
    'Text and speech both come from POST /v1/chat/completions, with "modalities": ["text", "audio"]; '
    "GET /v1/models lists what answers."
)
ANY_METHOD = ["GET", "POST", "PUT", "PATCH", "DELETE"]
SEND_SECONDS = 120.0
"""Longest time a caller may take nothing of an answer: as long as it is being made it has the place of another one."""
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class NotOffered(BadRequest):
    """There is no such model or address here."""

    status = 404
    kind = "not_found_error"


class Replies(Protocol):
    """What the API needs of the one who owns the engine."""

    def status(self) -> EngineStatus: ...

    def reply(self, messages: Sequence[Message], options: ReplyOptions) -> AsyncGenerator[Event, None]: ...


def routes(runner: Replies, settings: Settings, limits: Limits, turnstile: Turnstile | None = None) -> list[BaseRoute]:
    """The API's routes, in the order in which they must be tried. `/health` alone asks for no key."""
    folder = own_folder(settings.data_dir / REQUESTS)
    turnstile = turnstile or Turnstile.of(settings)
    api = _Api(runner, settings, limits, turnstile, folder)
    return [
        Route("/v1/chat/completions", _Asgi(api.chat), methods=["POST"]),
        Route("/v1/models", api.models, methods=["GET"]),
        Route("/v1/{rest:path}", api.not_offered, methods=ANY_METHOD),
        Route("/health", api.health, methods=["GET"]),
        Route("/metrics", api.metrics, methods=["GET"]),
    ]


class _Asgi:
    """Starlette hands a request's raw channel only to objects, not to functions."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class _Api:
    def __init__(self, runner: Replies, settings: Settings, limits: Limits, turnstile: Turnstile, folder: Path) -> None:
        self._runner = runner
        self._proxies = settings.proxies
        self._turnstile = turnstile
        self._limits = limits
        self._guard = Guard(settings)
        self._metrics = Metrics()
        self._folder = folder
        # One file of the largest size, or several that are together as large.
        self._inbox = Inbox(int(limits.max_bytes * OVERHEAD) + TEXT_ROOM)

    async def chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            async with contextlib.AsyncExitStack() as held:
                with self._metrics.refusals():
                    self._guard.check(request)
                    given = await held.enter_async_context(self._inbox.json(request))
                    asked = self._checked(wire.parse_request(given))
                await while_connected(receive, lambda: self._answer(asked, scope, receive, send))
        except OmniError as error:
            await failure(error)(scope, receive, send)
        except ClientDisconnect:
            log.info("a caller left while sending a request")

    async def _answer(self, asked: wire.ChatRequest, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with _folder(self._folder) if _has_media(asked) else contextlib.nullcontext(self._folder) as folder:
                messages = await self._messages(asked, folder)
                caller = address_of(Request(scope), self._proxies)
                async with contextlib.aclosing(self._measured(caller, messages, asked.options)) as events:
                    if asked.stream:
                        await self._stream(asked, events, send)
                    else:
                        body = wire.completion_body([event async for event in events], asked, self._model)
                        await _json(body)(scope, receive, send)
        except OmniError as error:
            await failure(error)(scope, receive, send)
        except TimeoutError:
            log.info("a caller took nothing of an answer for %g seconds, so it was stopped", SEND_SECONDS)

    async def _stream(self, asked: wire.ChatRequest, events: AsyncGenerator[Event, None], send: Send) -> None:
        """Raises what fails before the first event, so that it gets its own HTTP status, and TimeoutError."""
        encoder, begun, send = wire.ReplyEncoder(asked, self._model), False, _in_time(send)
        try:
            async for event in events:
                if not begun:
                    begun = True
                    await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
                await send({"type": "http.response.body", "body": encoder.encode(event), "more_body": True})
        except OmniError as error:
            if not begun:
                raise
            await send({"type": "http.response.body", "body": encoder.error(error), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _measured(
        self, caller: str, messages: Sequence[Message], options: ReplyOptions
    ) -> AsyncGenerator[Event, None]:
        meter, outcome = ReplyMeter(), "cancelled"
        with self._metrics.running.track_inprogress():
            try:
                made = self._turnstile.through(caller, self._runner.reply(messages, options))
                async with contextlib.aclosing(made) as events:
                    async for event in events:
                        meter.observe(event)
                        ended = isinstance(event, ReplyEnd) and event.reason != "cancelled"
                        outcome = "ok" if ended else outcome
                        yield event
            except OmniError as error:
                outcome = outcome_of(error)
                raise
            except Exception as error:
                outcome = "failed"
                log.exception("a reply failed in a way that the engine did not foresee")
                raise EngineFailed("The answer failed for a reason that the log of the server tells.") from error
            finally:
                self._metrics.record(outcome, meter.figures())

    def _checked(self, asked: wire.ChatRequest) -> wire.ChatRequest:
        status = self._runner.status()
        names = list(dict.fromkeys((status.model, status.name, "default")))
        if asked.model and asked.model not in names:
            known = ", ".join(f'"{name}"' for name in names if name)
            raise NotOffered(f'The model "{asked.model[:100]}" is not served here. Served: {known}.')
        # Before it is ready an engine does not know yet whether it speaks; then it is waited for.
        if asked.options.speech and not asked.text and status.ready and not status.speaks:
            raise BadRequest('This engine does not speak. Ask with "modalities": ["text"].')
        for spec in asked.messages:
            check_count(sum(isinstance(part, wire.MediaRef) for part in spec.parts), self._limits)
            check_text("\n".join(part for part in spec.parts if isinstance(part, str)), self._limits)
        options = dataclasses.replace(asked.options, voice=spelled(asked.options.voice, status.voices))
        return dataclasses.replace(asked, options=options)

    async def _messages(self, asked: wire.ChatRequest, folder: Path) -> list[Message]:
        with self._metrics.refusals():
            return [
                Message(spec.role, tuple([await self._part(part, folder) for part in spec.parts]))
                for spec in asked.messages
            ]

    async def _part(self, given: str | wire.MediaRef, folder: Path) -> Part:
        if isinstance(given, str):
            return Part("text", given)
        part = await ingest_data_url(given.url, into=folder, limits=self._limits, name=given.kind)
        if part.kind != given.kind:
            raise MediaRejected(f"A part that was sent as {given.kind} holds {part.kind}. Send it as {part.kind}_url.")
        return part

    @property
    def _model(self) -> str:
        status = self._runner.status()
        return status.model or status.name

    async def models(self, request: Request) -> Response:
        """OpenAI's list, with what else a client of ours wants to know."""
        status = self._runner.status()
        entry = {
            "id": self._model, "object": "model", "created": int(time.time()), "owned_by": status.name,
            "voices": list(status.voices), "modalities": sorted(status.modalities), "speaks": status.speaks,
        }  # fmt: skip
        return self._guarded(request, lambda: _json({"object": "list", "data": [entry]}))

    async def metrics(self, request: Request) -> Response:
        page = partial(generate_latest, self._metrics.registry)
        return self._guarded(request, lambda: Response(page(), headers={"content-type": CONTENT_TYPE_LATEST}))

    def _guarded(self, request: Request, answer: Callable[[], Response]) -> Response:
        try:
            self._guard.check(request)
        except OmniError as error:
            return failure(error)
        return answer()

    async def health(self, request: Request) -> Response:
        status = self._runner.status()
        if status.ready:
            return _json({"status": "healthy"})
        return _json({"status": "unhealthy", "why": status.why}, 503)

    async def not_offered(self, request: Request) -> Response:
        asked = f"{request.method} {request.url.path[:100]}"
        return failure(NotOffered(f"{asked} is not offered here. {INSTEAD}"))


@contextlib.contextmanager
def _folder(within: Path) -> Iterator[Path]:
    """A folder for the media of one request, gone with it."""
    try:
        within.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(dir=within, ignore_cleanup_errors=True)
    except OSError as error:
        raise unkept("The question", error) from error
    with folder:
        yield Path(folder.name)


def _has_media(asked: wire.ChatRequest) -> bool:
    return any(isinstance(part, wire.MediaRef) for spec in asked.messages for part in spec.parts)


def own_folder(shared: Path) -> Path:
    """This process's folder within `shared`, named by its id. What was left there by servers that run no more, or by
    nobody known, is removed."""
    for left in shared.glob("*"):
        if left.name == str(os.getpid()) or not (left.name.isdecimal() and psutil.pid_exists(int(left.name))):
            shutil.rmtree(left, ignore_errors=True)
            with contextlib.suppress(OSError):
                left.unlink()
    return shared / str(os.getpid())


def _in_time(send: Send) -> Send:
    async def sent(message: ASGIMessage) -> None:
        with anyio.fail_after(SEND_SECONDS):
            await send(message)

    return sent


def _json(body: object, status: int = 200) -> Response:
    return Response(json.dumps(body), status, media_type="application/json")
