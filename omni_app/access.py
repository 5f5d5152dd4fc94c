"""Who may call the API and how much they may send; and that no work is done for a caller who has gone."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hmac
import ipaddress
import json
import logging
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import anyio
import anyio.to_thread
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from omni_app import space, wire
from omni_app.errors import BadRequest, EngineAtCapacity, OmniError
from omni_app.settings import Settings
from omni_app.turnstile import TooMany

log = logging.getLogger(__name__)

READ_SECONDS = 120.0
"""Longest time a request body may take to arrive: the largest one over a line of 10 Mbit/s."""
BODIES_AT_ONCE = 256
"""Requests that may be at work at one time; how many of them are answered at once is the engine's affair."""
ALWAYS_TAKEN_BYTES = 128 * 2**10
"""What a body may have however full the room is, so that files of some never keep the questions of others out."""

_TOOL_PATH = re.compile(r"/gradio_api/(mcp|(call|call/v2|run|api)/ask)(/|$)")


class Unauthorized(OmniError):
    """The key or the password is missing or wrong."""

    status = 401
    kind = "authentication_error"

    def __init__(self, message: str, scheme: str) -> None:
        super().__init__(message)
        self.scheme = scheme
        """What the answer's WWW-Authenticate header must say."""


class Forbidden(OmniError):
    """A web page of another site asks through a visitor's browser."""

    status = 403
    kind = "permission_error"


class TooLarge(BadRequest):
    """The request body is larger than all that it may carry."""

    status = 413


class TooSlow(BadRequest):
    """The request body did not arrive in time."""

    status = 408


class NoRoom(EngineAtCapacity):
    """The bodies of other requests take all the memory that bodies may take."""


class Guard:
    """Lets callers in: with the key as a bearer token when there is one, else with the page's own user and password."""

    def __init__(self, settings: Settings) -> None:
        self._key = settings.serve_key.get_secret_value().encode()
        self._login = settings.auth.get_secret_value().encode()
        self._private = _is_loopback(settings.host) and not (self._key or self._login or settings.share)
        self._public_names = space.hosts()

    def check(self, request: HTTPConnection) -> None:
        """Raises Unauthorized and Forbidden."""
        self.check_site(request)
        self._check_secret(request)

    def check_site(self, request: HTTPConnection) -> None:
        """Raises Forbidden when a web page of another site asks, also one whose name was bent to this machine."""
        host = request.headers.get("host", "")
        if self._private and not _is_loopback(_hostname(host)):
            raise Forbidden(
                f'This server answers only on this machine, as localhost, not as "{host[:100]}". '
                "To reach it under another name, set OMNI_AUTH or OMNI_SERVE_KEY."
            )
        # The page's own middleware opens CORS to every site unless it runs on localhost; programs send no Origin.
        origin = request.headers.get("origin", f"//{host}").partition("//")[2]
        # A Space's proxy may ask us under a name of its own; its public names come from the Space, not from the caller.
        if origin != host and origin.lower() not in self._public_names:
            raise Forbidden("Web pages of other sites may not use this API.")

    def _check_secret(self, request: HTTPConnection) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if self._key:
            # A header is bytes, which arrive as if they were Latin-1; our own connection sends a key in UTF-8.
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip(" ").encode("latin-1"), self._key):
                raise Unauthorized("Send the key of this server as Authorization: Bearer <key>.", "Bearer")
        elif self._login and (scheme.lower() != "basic" or not hmac.compare_digest(_unbase64(given), self._login)):
            raise Unauthorized("Send user and password of this server as HTTP Basic.", 'Basic realm="omni-app"')


class ToolGuard:
    """ASGI middleware: Gradio's ways in for programs, MCP and `/gradio_api/call/ask`, ask for what /v1 asks for.

    A visitor who has logged in on the page may use them too. The page itself uses neither.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._guard = Guard(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _TOOL_PATH.search(scope["path"]):
            try:
                self._check(HTTPConnection(scope))
            except OmniError as error:
                await failure(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, request: HTTPConnection) -> None:
        if logged_in(request):
            self._guard.check_site(request)
        else:
            self._guard.check(request)


def address_of(request: HTTPConnection, proxies: int) -> str:
    """The caller's address: the connection's own, or what the outermost of our `proxies` proxies saw.

    Each proxy appends the address that it was asked from, so anything further left may be the caller's invention.
    """
    hops = [hop.strip() for line in request.headers.getlist("x-forwarded-for") for hop in line.split(",")]
    if proxies and len(hops) >= proxies:
        return hops[-proxies]
    return request.client.host if request.client else ""


def asks_for_key(path: str) -> bool:
    """Whether the key of this server, where there is one, guards this address: API, figures and tools."""
    return path.startswith("/v1/") or path == "/metrics" or bool(_TOOL_PATH.search(path))


def over_https(request: HTTPConnection) -> bool:
    """Whether the browser came over HTTPS, to us or to the proxy in front."""
    forwarded = request.headers.get("x-forwarded-proto", "")
    return request.scope["scheme"] == "https" or forwarded.startswith("https")


def cookie(name: str, value: str, seconds: int, secure: bool) -> str:
    """A Set-Cookie header that no script can read; over HTTPS it also holds inside the frame of a hosting site."""
    reach = "SameSite=None; Secure; Partitioned" if secure else "SameSite=Lax"
    return f"{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; {reach}"


def logged_in(request: HTTPConnection) -> bool:
    """Whether the caller holds the cookie of a login on the page, asked the way Gradio's own login check asks."""
    app = request.app
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return app.auth is not None and any(request.cookies.get(name) in app.tokens for name in names)


def failure(error: OmniError) -> Response:
    """An error as the API tells it."""
    headers = {"www-authenticate": error.scheme} if isinstance(error, Unauthorized) else {}
    if isinstance(error, TooMany):
        headers["retry-after"] = str(math.ceil(error.wait_seconds))
    return Response(json.dumps(wire.error_body(error)), error.status, headers, media_type="application/json")


async def malformed(request: Request, error: Exception) -> Response:
    """Handles a body that one of Gradio's routes cannot read.

    FastAPI's own handler sends the body back, and fails over what JSON cannot hold: a lone surrogate, an infinity.
    """
    log.info("%s cannot read a request body: %s", request.url.path, type(error).__name__)
    return failure(BadRequest("The request body is not what this address takes; GET /gradio_api/info describes it."))


class Inbox:
    """Takes request bodies in: each within a size and a time, all of them together within twice that size."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bodies = 0
        self._held_bytes = 0

    @contextlib.asynccontextmanager
    async def json(self, request: Request) -> AsyncIterator[object]:
        """The decoded body, counted as held until the block ends.

        Raises BadRequest, TooSlow, NoRoom, and TooLarge before reading where the caller tells the size.
        """
        if not request.headers.get("content-type", "").lower().startswith("application/json"):
            raise BadRequest("Send the request as JSON, with the header Content-Type: application/json.")
        async with self.raw(request) as body:
            value = await anyio.to_thread.run_sync(decoded, body)
            body.clear()
            yield value

    @contextlib.asynccontextmanager
    async def raw(self, request: Request) -> AsyncIterator[bytearray]:
        """The same body of any type, as it came. Raises the same."""
        self._check_size(request)
        with self._share() as grow:
            yield await self._read(request, grow)

    def _check_size(self, request: Request) -> None:
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._most_bytes:
            raise _too_large(self._most_bytes)

    @contextlib.contextmanager
    def _share(self) -> Iterator[Callable[[int], None]]:
        """Counts one body until the block ends; the function given is told how many bytes it has become."""
        if self._bodies >= BODIES_AT_ONCE:
            raise _no_room()
        counted = 0

        def grow(size: int) -> None:
            nonlocal counted
            more = max(0, size - ALWAYS_TAKEN_BYTES) - counted
            if self._held_bytes + more > 2 * self._most_bytes:
                raise _no_room()
            counted += more
            self._held_bytes += more

        self._bodies += 1
        try:
            yield grow
        finally:
            self._bodies -= 1
            self._held_bytes -= counted

    async def _read(self, request: Request, grow: Callable[[int], None]) -> bytearray:
        body = bytearray()
        try:
            with anyio.fail_after(READ_SECONDS):
                async for piece in request.stream():
                    body += piece
                    if len(body) > self._most_bytes:
                        raise _too_large(self._most_bytes)
                    grow(len(body))
        except TimeoutError as error:
            raise TooSlow(
                f"The request did not arrive within {READ_SECONDS:.0f} seconds. Send it again, with smaller files."
            ) from error
        return body


async def while_connected(receive: Receive, work: Callable[[], Awaitable[None]]) -> None:
    """Do `work`, and drop it at once when the caller goes away. The request body must have been read."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await work()
        group.cancel_scope.cancel()


def _too_large(most_bytes: int) -> TooLarge:
    return TooLarge(
        f"The request is larger than the {most_bytes / 1e6:.0f} MB that are taken with all its files together. "
        "Send fewer or smaller files."
    )


def _no_room() -> NoRoom:
    return NoRoom("The server is taking in all that it can from others. Send the request again in a moment.")


def decoded(raw: bytearray) -> object:
    """The value that a JSON text holds. Raises BadRequest."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadRequest("The request body is not valid JSON.") from error


def _unbase64(given: str) -> bytes:
    try:
        return base64.b64decode(given.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _hostname(host: str) -> str:
    """The name or address in a Host header, without its port."""
    return re.sub(r":\d*$", "", host).strip("[]").lower()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
