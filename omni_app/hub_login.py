"""Signing in with Hugging Face: who a visitor is at the hub, and a token of theirs that may push there.

The OAuth application comes from the Space (`hf_oauth: true`) or from the app's owner, as four environment variables.
Tokens stay in this process's memory; a browser holds only the unguessable name of its session. Gradio's own routes for
its LoginButton are not used: outside a Space they sign all in as this machine, and on one a cookie holds the token.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlsplit

import httpx2
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from omni_app import space
from omni_app.access import asks_for_key, cookie, failure, over_https
from omni_app.errors import BadRequest, OmniError
from omni_app.settings import Settings

log = logging.getLogger(__name__)

COOKIE = "omni_hub"
LOGIN, CALLBACK, LOGOUT = "/login/huggingface", "/login/callback", "/logout"
"""The first and the last are where Gradio's LoginButton leads."""
OPEN = {LOGIN, CALLBACK, LOGOUT, "/health", "/gradio_api/startup-events"}
"""What anybody may ask for; the last is Gradio's question to itself whether it is up."""
PENDING_SECONDS, SESSION_SECONDS = 600, 8 * 3600
PROVIDER_SECONDS = 20.0
MOST_PENDING, MOST_SESSIONS = 2_000, 20_000
_PERSON = "omni_app.person"
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Omni: sign in</title><style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; display: grid; place-content: center; min-height: 90vh; margin: 0 24px;
  text-align: center; background: light-dark(#fff, #18181b); color: light-dark(#27272a, #f4f4f5) }}
p {{ max-width: 30rem }}
a {{ display: inline-block; padding: 10px 20px; border-radius: 10px; background: #4f46e5; color: #fff;
  text-decoration: none }}
a:focus-visible {{ outline: 3px solid currentColor; outline-offset: 2px }}
</style><main><h1>Omni</h1><p role="alert">{sentence}</p><a href="{link}">Sign in with Hugging Face</a></main></html>"""

T = TypeVar("T")


class SignInNeeded(OmniError):
    """Nobody is let in here without being signed in."""

    status = 401
    kind = "authentication_error"


class SignInFailed(OmniError):
    """The hub did not say who the visitor is. The message says what to do."""

    status = 502


@dataclass(frozen=True, slots=True)
class Person:
    """A visitor as the hub knows them."""

    name: str
    token: str = field(repr=False)


class Kept(Generic[T]):
    """Values under unguessable names, each for its time; the oldest go when there are too many."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._values: dict[str, tuple[float, T]] = {}

    def put(self, value: T, seconds: float) -> str:
        """The new name."""
        name = secrets.token_urlsafe(32)
        self._values[name] = (self._clock() + seconds, value)
        while len(self._values) > self._most:
            del self._values[next(iter(self._values))]
        return name

    def get(self, name: str) -> T | None:
        until, value = self._values.get(name, (0.0, None))
        if value is not None and until <= self._clock():
            self.drop(name)
            return None
        return value

    def drop(self, name: str) -> None:
        self._values.pop(name, None)


def person_of(request: HTTPConnection | None) -> Person | None:
    """Who has signed in on the browser that asks; None also where signing in is off."""
    found = request.scope.get(_PERSON) if request else None
    return found if isinstance(found, Person) else None


class HubLogin:
    """The OAuth application, and everybody who has signed in through it since the app started."""

    def __init__(self, settings: Settings, environ: Mapping[str, str] = os.environ) -> None:
        """Raises BadRequest where there is no OAuth application."""
        missing = [name for name in space.OAUTH if not environ.get(name)]
        if missing:
            raise BadRequest(
                f"Signing in with Hugging Face (OMNI_HUB_LOGIN={settings.hub_login}) needs an OAuth application, and "
                f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set. On a Space write hf_oauth: true "
                "at the top of its README.md; elsewhere make one at https://huggingface.co/settings/applications/new "
                "and set its variables (docs/space.md), or set OMNI_HUB_LOGIN=off."
            )
        self.required = settings.hub_login == "required"
        self.has_key = bool(settings.serve_key.get_secret_value())
        self._home = space.home(environ)
        self._pending: Kept[dict[str, Any]] = Kept(MOST_PENDING)
        self._people: Kept[Person] = Kept(MOST_SESSIONS)
        self._client = _client(*(environ[name] for name in space.OAUTH))

    @classmethod
    def of(cls, settings: Settings) -> HubLogin | None:
        """None where signing in is off. Raises BadRequest."""
        return None if settings.hub_login == "off" else cls(settings)

    def person(self, request: HTTPConnection) -> Person | None:
        return self._people.get(request.cookies.get(COOKIE, ""))

    def routes(self) -> list[BaseRoute]:
        return [Route(LOGIN, self._login), Route(CALLBACK, self._callback), Route(LOGOUT, self._logout)]

    async def _login(self, request: Request) -> Response:
        session: dict[str, Any] = {"target": _local(request.query_params.get("_target_url", "/"))}
        request.scope["session"] = session
        try:
            response: Response = await self._client.authorize_redirect(request, self._own_address(request))
        except _failures() as error:
            return _failed(error)
        return _remember(request, response, self._pending.put(session, PENDING_SECONDS), PENDING_SECONDS)

    async def _callback(self, request: Request) -> Response:
        name = request.cookies.get(COOKIE, "")
        session = request.scope["session"] = self._pending.get(name) or {}
        self._pending.drop(name)
        try:
            token = await self._client.authorize_access_token(request)
            person = Person(str(token["userinfo"]["preferred_username"]), str(token["access_token"]))
        except _failures() as error:
            return _failed(error)
        seconds = min(int(token.get("expires_in") or SESSION_SECONDS), SESSION_SECONDS)
        # Under a new name, so that nobody who knew the old one is signed in along with them.
        return _remember(request, RedirectResponse(session["target"]), self._people.put(person, seconds), seconds)

    async def _logout(self, request: Request) -> Response:
        self._people.drop(request.cookies.get(COOKIE, ""))
        return _remember(request, RedirectResponse(_local(request.query_params.get("_target_url", "/"))), "", 0)

    def _own_address(self, request: Request) -> str:
        """Where the hub sends the visitor back to; a Space may be asked under another name than its own."""
        scheme = "https" if over_https(request) else "http"
        return f"https://{self._home}{CALLBACK}" if self._home else f"{scheme}://{request.headers['host']}{CALLBACK}"


class SignIn:
    """ASGI middleware: knows who asks; where signing in is required, lets nobody else pass.

    Programs with the server's key keep their way in: what is left to the key is checked by `Guard` and `ToolGuard`.
    """

    def __init__(self, app: ASGIApp, hub: HubLogin) -> None:
        self.app = app
        self._hub = hub

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        request = HTTPConnection(scope)
        scope[_PERSON] = self._hub.person(request)
        if scope[_PERSON] or self._is_open(scope["path"]):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await _refused(request)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _is_open(self, path: str) -> bool:
        return not self._hub.required or path in OPEN or (self._hub.has_key and asks_for_key(path))


def _client(client_id: str, client_secret: str, scopes: str, provider: str) -> Any:
    from authlib.integrations.starlette_client import OAuth

    asked = {"scope": scopes, "code_challenge_method": "S256", "timeout": PROVIDER_SECONDS}
    return OAuth().register(
        "huggingface", client_id=client_id, client_secret=client_secret, client_kwargs=asked,
        server_metadata_url=f"{provider.rstrip('/')}/.well-known/openid-configuration",
    )  # fmt: skip


def _failures() -> tuple[type[Exception], ...]:
    """What a login ends with when the visitor says no, the hub is away, or what it answers is not its own."""
    from authlib.common.errors import AuthlibBaseError
    from joserfc.errors import JoseError

    # The last four: answers that are not what the protocol says, a missing endpoint among them.
    return (AuthlibBaseError, JoseError, httpx2.HTTPError, KeyError, ValueError, TypeError, RuntimeError)


def _failed(error: Exception) -> Response:
    from authlib.integrations.starlette_client import OAuthError

    log.info("a sign-in failed: %s", type(error).__name__)  # its message may hold what the hub was asked
    if isinstance(error, OAuthError) and error.error == "access_denied":
        return _page("You did not allow it, so nobody was signed in. You can try again.", "/", 403)
    if isinstance(error, OAuthError) and error.error == "mismatching_state":
        return _page("This sign-in was begun in another window, or too long ago. Please begin it anew.", "/", 400)
    told = SignInFailed("Hugging Face did not confirm the sign-in, or cannot be reached. Try again in a moment.")
    return _page(str(told), "/", told.status)


def _refused(request: HTTPConnection) -> Response:
    is_page = request.scope["method"] == "GET" and "text/html" in request.headers.get("accept", "")
    if is_page:
        return _page("This app is open to people who are signed in.", request.url.path, SignInNeeded.status)
    return failure(SignInNeeded("Sign in with Hugging Face on this app's page first."))


def _page(sentence: str, target: str, status: int) -> Response:
    link = f"{LOGIN}?_target_url={quote(target)}"
    return HTMLResponse(_PAGE.format(sentence=escape(sentence), link=escape(link)), status)


def _remember(request: Request, response: Response, name: str, seconds: int) -> Response:
    response.headers.append("set-cookie", cookie(COOKIE, name, seconds, over_https(request)))
    response.headers["cache-control"] = "no-store"
    return response


def _local(target: str) -> str:
    """The same place on this app: an address given from outside must not lead to another site."""
    parts = urlsplit(re.sub(r"[\x00-\x20]", "", target))
    query = f"?{parts.query}" if parts.query else ""
    return "/" + parts.path.lstrip("/\\") + query
