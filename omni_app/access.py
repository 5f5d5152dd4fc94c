"""Who may call the API and how much they may send; and that no work is done for a caller who has gone."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Awaitable, Callable

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.types import Receive

from omni_app.errors import BadRequest, OmniError
from omni_app.settings import Settings


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


class Guard:
    """Lets callers in: with the key as a bearer token when there is one, else with the page's own user and password."""

    def __init__(self, settings: Settings) -> None:
        self._key = settings.serve_key.get_secret_value().encode()
        self._login = settings.auth.get_secret_value().encode()

    def check(self, request: Request) -> None:
        """Raises Unauthorized and Forbidden."""
        # The page's own middleware opens CORS to every site unless it runs on localhost; programs send no Origin.
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
            raise Forbidden("Web pages of other sites may not use this API.")
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if self._key:
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key):
                raise Unauthorized("Send the key of this server as Authorization: Bearer <key>.", "Bearer")
        elif self._login and (scheme.lower() != "basic" or not hmac.compare_digest(_unbase64(given), self._login)):
            raise Unauthorized("Send user and password of this server as HTTP Basic.", 'Basic realm="omni-app"')


async def read_json(request: Request, most_bytes: int) -> object:
    """The decoded body. Raises BadRequest, and TooLarge before reading where the caller tells the size."""
    if not request.headers.get("content-type", "").lower().startswith("application/json"):
        raise BadRequest("Send the request as JSON, with the header Content-Type: application/json.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most_bytes:
        raise _too_large(most_bytes)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most_bytes:
            raise _too_large(most_bytes)
    return await anyio.to_thread.run_sync(_decoded, body)


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
    return TooLarge(f"The request is larger than the {most_bytes / 2**20:.0f} MB that are taken with all its files.")


def _decoded(raw: bytearray) -> object:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadRequest("The request body is not valid JSON.") from error


def _unbase64(given: str) -> bytes:
    try:
        return base64.b64decode(given.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""
