"""Who may operate this machine from the page: start and stop the model's server, quantize, see logs and files."""

from __future__ import annotations

import asyncio
import hmac
import os

import gradio as gr

from omni_app.errors import BadRequest
from omni_app.settings import LOOPBACK, Settings

FORWARDED = ("x-forwarded-for", "x-forwarded-host", "forwarded", "cf-connecting-ip")
WRONG_PASSWORD_S = 1.0
TAKES_PASSWORD = "While the app is open to others it takes a password: set OMNI_OPERATOR and start the app again."


class Operators:
    """With the operator's password, or else only somebody at this machine."""

    def __init__(self, settings: Settings) -> None:
        self._password = settings.operator.get_secret_value().encode()
        public = settings.share or bool(os.environ.get("SPACE_ID"))
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
    """Whether the page was opened at this machine's own name, and through no proxy that speaks for others."""
    headers = {name.lower(): value for name, value in dict(request.headers).items()}
    name = headers.get("host", "").rpartition(":")[0].strip("[]") or headers.get("host", "")
    return name in LOOPBACK and not any(header in headers for header in FORWARDED)
