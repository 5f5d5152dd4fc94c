"""The security headers that every response carries, and who may show the page in a frame."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omni_app import space

# Answers may name remote pictures or forms; a browser must neither load nor send them.
_CONTENT = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; img-src 'self' data: blob:; "
    "media-src 'self' data: blob:; connect-src 'self' data: blob: ws: wss:; form-action 'self'; object-src 'none'; "
    "base-uri 'self'; worker-src 'self' blob:"
)
_SPACE_FRAMES = ("https://huggingface.co",)
"""The hub shows every Space in a frame of its own site."""


def security_headers(on_space: bool) -> Mapping[str, str]:
    """No Strict-Transport-Security: with our self-signed certificate a browser could then never be let in."""
    frames = " ".join(("'self'", *(_SPACE_FRAMES if on_space else ())))
    return {
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Permissions-Policy": (
            "microphone=(self), camera=(self), geolocation=(), display-capture=(), payment=(), usb=(), serial=(), "
            "bluetooth=(), midi=()"
        ),
        "Content-Security-Policy": f"{_CONTENT}; frame-ancestors {frames}",
    }


class HeadersMiddleware:
    """Adds the headers to every response that does not set them itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._headers = security_headers(space.is_space())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    out.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers)
