"""Who is who: an unguessable cookie per browser."""

from __future__ import annotations

import hashlib
import re
import secrets
from pathlib import Path
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omni_app.access import cookie, logged_in, over_https

COOKIE = "omni_visitor"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_FILE_ROUTE = re.compile(r"/file[=/]+(.*)", re.DOTALL)
_YEAR = 365 * 24 * 3600


def name_of(cookies: dict[str, str] | Any) -> str:
    """The visitor's folder name for these request cookies; empty when the browser sent none of ours."""
    token = cookies.get(COOKIE, "")
    return hashlib.sha256(token.encode()).hexdigest()[:32] if _TOKEN.fullmatch(token) else ""


def visitor_of(request: Request) -> str:
    """The visitor of a request to one of our own routes; empty also for one who has not logged in where one must.

    Gradio guards only its own routes.
    """
    allowed = request.app.auth is None or logged_in(request)
    return name_of(request.cookies) if allowed else ""


class VisitorMiddleware:
    """Gives every new browser its cookie with the page, and every other one its own anew: else all that was kept for
    it would be out of its reach a year after it came first.

    `private` is a folder whose files nobody may read through Gradio's file route: the page shows unguessable copies.
    """

    def __init__(self, app: ASGIApp, private: Path) -> None:
        self.app = app
        self._private = private.resolve()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self._is_private(scope["path"]):
            await Response(status_code=404)(scope, receive, send)
            return
        request = HTTPConnection(scope)
        is_page = scope["method"] == "GET" and "text/html" in request.headers.get("accept", "")
        token = request.cookies[COOKIE] if name_of(request.cookies) else secrets.token_urlsafe(32)
        given = cookie(COOKIE, token, _YEAR, over_https(request))

        async def send_with_cookie(message: Message) -> None:
            if is_page and message["type"] == "http.response.start":
                MutableHeaders(scope=message).append("set-cookie", given)
            await send(message)

        await self.app(scope, receive, send_with_cookie)

    def _is_private(self, path: str) -> bool:
        if "\0" in path:
            return True  # it names no file, and whoever looked for one would break
        asked = _FILE_ROUTE.search(path)
        named = (Path("/", asked[1]), Path(asked[1])) if asked else ()
        return any(file.resolve().is_relative_to(self._private) for file in named)
