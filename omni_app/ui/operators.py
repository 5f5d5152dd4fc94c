"""Who may operate this machine from the page: start and stop the model's server, quantize, see logs and files."""

from __future__ import annotations

import asyncio
import hmac
import os

import gradio as gr
from starlette.requests import Request

from omni_app.errors import BadRequest
from omni_app.settings import LOOPBACK, Settings

FORWARDED = (
    "forwarded", "via", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "x-original-host", "true-client-ip",
    "cf-connecting-ip", "fastly-client-ip", "x-envoy-external-address",
)  # fmt: skip
"""What proxies add, besides X-Forwarded-*, and no browser sends."""
WRONG_PASSWORD_S = 1.0
TAKES_PASSWORD = "While the app is open to others it takes a password: set OMNI_OPERATOR and start the app again."


class Operators:
    """With the operator's password, or else only somebody at this machine."""

    def __init__(self, settings: Settings) -> None:
        self._password = settings.operator.get_secret_value().encode()
        public = settings.share or settings.proxies > 0 or bool(os.environ.get("SPACE_ID"))
        self._local = settings.host in LOOPBACK and not public

    @property
    def possible(self) -> bool:
        return bool(self._password) or self._local

    @property
    def ask_for_password(self) -> bool:
        return bool(self._password)

    async def check(self, password: str, request: gr.Request) -> None:
        """Raises BadRequest."""
        if await self.let_in(password, request):
            return
        if self._password:
            raise BadRequest("That is not the operator's password (OMNI_OPERATOR).")
        raise BadRequest("Starting and stopping from elsewhere needs a password: set OMNI_OPERATOR.")

    async def let_in(self, password: str, request: gr.Request) -> bool:
        """The same as `may`, slow for those who guess."""
        allowed = self.may(password, request)
        if password and not allowed:
            await asyncio.sleep(WRONG_PASSWORD_S)
        return allowed

    def may(self, password: str, request: gr.Request) -> bool:
        """Whether this visitor may operate, and see logs and what machine this is."""
        if self._password:
            return hmac.compare_digest(password.encode(), self._password)
        return self._local and _from_here(request)


def _from_here(request: gr.Request) -> bool:
    """Whether a browser on this machine asked, by this machine's own name."""
    asked = request.request
    if asked is None:
        return False
    host = asked.headers.get("host", "")
    name = host.rpartition(":")[0].strip("[]") or host
    return name in LOOPBACK and not _passed_on(asked) and _sites(asked) <= {host}


def _passed_on(asked: Request) -> bool:
    """Whether a proxy sent this. A browser speaks HTTP/1.1 or newer and keeps its connection. nginx before 1.29.7 does
    neither unless told to, and asks by our own name without a word of whom it asks for."""
    old = asked.scope["http_version"] < "1.1"
    closes = "close" in asked.headers.get("connection", "").lower()
    return old or closes or any(name.startswith("x-forwarded-") or name in FORWARDED for name in asked.headers)


def _sites(asked: Request) -> set[str]:
    """The hosts, with their ports, of the page that the browser shows."""
    named = [asked.headers[name] for name in ("origin", "referer") if name in asked.headers]
    return {address.partition("//")[2].partition("/")[0] for address in named}
