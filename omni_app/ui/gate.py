"""What stands before Gradio's own routes: bounds on what they read, and a word of ours where they would break.

Gradio reads JSON of any size, fails over bodies that are not JSON or name no event of the page, and leaves behind what
had arrived of an upload that failed. Of its ways in, those that the page has no use for are closed.
"""

from __future__ import annotations

import errno
import logging
import re
import traceback
from collections.abc import Iterable
from pathlib import Path

import anyio.to_thread
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omni_app.access import Inbox, TooLarge, decoded, failure
from omni_app.api import OVERHEAD, TEXT_ROOM, NotOffered
from omni_app.errors import BadRequest, OmniError, unkept
from omni_app.media import Limits

log = logging.getLogger(__name__)

_OURS = re.compile(r"/gradio_api/(voice|utterance|export)(/|$)|^/(v1|health|metrics)(/|$)")
_UPLOAD = re.compile(r"/gradio_api/upload/?$")
_JSON = re.compile(r"/gradio_api/(queue/join|call|run|mcp|cancel|reset)(/|$)")
_CLOSED = re.compile(
    r"/gradio_api/(api|component_server|process_recording|stream|deep_link|run-history|profiling|dev)(/|$)"
    r"|/gradio_api/(proxy=|(undo-)?vibe-)|^/monitoring"
)
_NAME = re.compile(r"(https?://)?([\w.-]+|\[[\da-fA-F:.]+\])(:\d{1,5})?(/[!-~]*)?", re.ASCII)
"""A host as a browser or a proxy names it, with or without a scheme."""
_NAMING = ("host", "x-forwarded-host", "x-gradio-server")
READ_AT_ONCE = 64 * 2**10
"""Bytes of JSON that are read in less than a millisecond."""
_READING = ("GET", "HEAD")
_UNREADABLE = "The request is not what this address takes; GET /gradio_api/info describes it."
_BROKEN = "Something broke on this server over this request, and its log says where. Please try again."


class Gate:
    """ASGI middleware. `folder` is where Gradio keeps uploads."""

    def __init__(self, app: ASGIApp, limits: Limits, folder: Path) -> None:
        self.app = app
        self._inbox = Inbox(int(limits.max_bytes * OVERHEAD) + TEXT_ROOM)
        self._most_upload = limits.max_media_parts * limits.max_bytes + TEXT_ROOM
        self._folder = folder
        self._uploads = 0
        self._broken = False
        self._reported: set[tuple[str, int]] = set()
        """Files and lines at which something of ours has broken."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _OURS.search(scope["path"]):
            await self.app(scope, receive, send)
            return
        told = _Told(send)
        try:
            await self._pass(scope, receive, told)
        except ClientDisconnect:
            log.info("a caller left while sending to %s", scope["path"])
        except OmniError as error:
            await told.end(error, scope, receive)
        except Exception as error:
            log.debug("where %.200r broke", scope["path"], exc_info=error)
            await told.end(self._judged(error, scope), scope, receive)

    def _judged(self, error: Exception, scope: Scope) -> OmniError:
        """What the caller is told of it: a body that Gradio cannot read is the caller's fault, all else is ours."""
        reading, path = scope["method"] in _READING, scope["path"]
        if isinstance(error, OSError) and not reading:
            return unkept("The file", error)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return _not_offered(path)
        if reading and not isinstance(error.__cause__, HTTPException):  # which came too late to be the answer
            self._report(error, path)
            return OmniError(_BROKEN)
        log.warning("%.200r broke over a request: %.200r", path, error)
        return BadRequest(_UNREADABLE)

    def _report(self, error: Exception, path: str) -> None:
        """In one line, and the first at its place with all that led there: anybody can make as many as they like."""
        frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
        place = frame.f_code.co_filename, line
        log.error("%.200r broke: %.200r", path, error, exc_info=None if place in self._reported else error)
        self._reported.add(place)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        _check_names(Headers(scope=scope))
        if _CLOSED.search(path):
            raise _not_offered(path)
        if scope["method"] == "POST" and _UPLOAD.search(path):
            await self._upload(scope, receive, send)
        elif scope["method"] == "POST" and _JSON.search(path):
            await self._json(scope, receive, send)
        else:
            await self.app(scope, _bounded(receive, TEXT_ROOM), send)  # the form of the login may carry a file

    async def _json(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._inbox.raw(Request(scope, receive)) as body:
            if len(body) > READ_AT_ONCE:
                await anyio.to_thread.run_sync(decoded, body)
            elif body:
                decoded(body)  # in no thread, where two questions of one visitor could overtake each other
            await self.app(scope, _replayed(bytes(body), receive), send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Gradio writes each file under a name of its own first; what failed is only known from the others by the end
        of all that were on their way at the same time."""
        self._uploads += 1
        try:
            await self.app(scope, _bounded(receive, self._most_upload), send)
        except BaseException:
            self._broken = True
            raise
        finally:
            self._uploads -= 1
            if self._broken and not self._uploads:
                self._broken = False
                # Looked for here and now: by the time that a thread does so, the next upload may be on its way.
                await anyio.to_thread.run_sync(_remove, list(self._folder.glob("tmp*")))


class _Told:
    """The channel to the caller, and how much of an answer has gone through it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = False
        self._ended = False

    async def __call__(self, message: Message) -> None:
        self._begun = True
        self._ended = message["type"] == "http.response.body" and not message.get("more_body")
        await self._send(message)

    async def end(self, error: OmniError, scope: Scope, receive: Receive) -> None:
        """Answer with the error; where an answer has begun already, only end it in order."""
        if not self._begun:
            # The page shows what an upload is answered as it is.
            plain = PlainTextResponse(str(error), error.status) if _UPLOAD.search(scope["path"]) else failure(error)
            await plain(scope, receive, self._send)
        elif not self._ended:
            await self._send({"type": "http.response.body", "body": b""})


def _not_offered(path: str) -> NotOffered:
    return NotOffered(f"{path[:100]} is not offered here.")


def _check_names(headers: Headers) -> None:
    """Raises BadRequest for host names over which the making of links would break."""
    for header in _NAMING:
        for name in ",".join(headers.getlist(header)).split(","):
            if name.strip() and not _NAME.fullmatch(name.strip()):
                raise BadRequest(f"The header {header} does not name a host.")


def _bounded(receive: Receive, most_bytes: int) -> Receive:
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > most_bytes:
            raise TooLarge(
                f"The files are larger than the {most_bytes / 1e6:.0f} MB that are taken together. "
                "Send fewer or smaller ones."
            )
        return message

    return counted


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A channel that tells the body once more, then goes on as before."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def told() -> Message:
        return first.pop() if first else await receive()

    return told


def _remove(torn: Iterable[Path]) -> None:
    for path in torn:
        if path.is_file():
            path.unlink(missing_ok=True)
