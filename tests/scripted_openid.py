"""A scripted OpenID provider on a loopback port: authorisation code flow with PKCE, one user who always agrees.

Addresses and fields are those of huggingface.co: its /.well-known/openid-configuration, and the token answer and claims
that Gradio's oauth.py reads (read in Gradio 6.31); what a client must send is RFC 6749, 7636 and OpenID Connect Core.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

from tests.running_server import running

CLIENT, SECRET, USER = "client-of-omni", "s3cret-of-the-client", "user"
SCOPES = "openid profile contribute-repos"


@dataclass
class Provider:
    """What the provider says, and what it was asked."""

    address: str
    token: str
    """The access token that a login gives."""
    key: RSAKey
    refuses: bool = False
    """Whether the user says no."""
    nonce: str = ""
    """Said in the id token in place of the nonce that was asked for."""
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    asked: list[dict[str, str]] = field(default_factory=list)
    """Queries of the authorisation requests."""

    def variables(self) -> dict[str, str]:
        """As a Space with `hf_oauth: true` has them."""
        return {
            "OAUTH_CLIENT_ID": CLIENT, "OAUTH_CLIENT_SECRET": SECRET, "OAUTH_SCOPES": SCOPES,
            "OPENID_PROVIDER_URL": self.address,
        }  # fmt: skip

    def metadata(self) -> dict[str, Any]:
        return {
            "issuer": self.address, "authorization_endpoint": f"{self.address}/oauth/authorize",
            "token_endpoint": f"{self.address}/oauth/token", "jwks_uri": f"{self.address}/oauth/jwks",
            "response_types_supported": ["code"], "id_token_signing_alg_values_supported": ["RS256"],
        }  # fmt: skip

    def answer(self, asked: dict[str, str]) -> str:
        """Where the browser is sent after it has asked for authorisation."""
        self.asked.append(asked)
        said = {"error": "access_denied"} if self.refuses else {"code": f"code-{len(self.asked)}"}
        self.codes |= {said["code"]: asked} if "code" in said else {}
        return f"{asked['redirect_uri']}?{urlencode(said | {'state': asked['state']})}"

    def exchange(self, form: dict[str, str], authorization: str) -> dict[str, Any] | None:
        """The tokens for a code; None where anything about it is wrong. A code is good once."""
        asked = self.codes.pop(form.get("code", ""), {})
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        right = (
            asked.get("client_id") == CLIENT
            and authorization == "Basic " + base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
            and asked["code_challenge"] == base64.urlsafe_b64encode(digest).decode().rstrip("=")
            and asked["redirect_uri"] == form.get("redirect_uri")
        )
        if not right:
            return None
        signed = jwt.encode({"alg": "RS256", "kid": "k"}, self._claims(asked), self.key)
        return {"access_token": self.token, "token_type": "bearer", "expires_in": 28_800, "scope": asked["scope"],
                "id_token": signed}  # fmt: skip

    def _claims(self, asked: dict[str, str]) -> dict[str, Any]:
        now = int(time.time())
        return {
            "sub": "62f", "name": "Ann User", "preferred_username": USER, "profile": f"{self.address}/{USER}",
            "picture": f"{self.address}/avatars/{USER}.png", "aud": CLIENT, "iss": self.address, "iat": now,
            "exp": now + 3600, "auth_time": now, "nonce": self.nonce or asked["nonce"],
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    provider: Provider

    def log_message(self, *args: Any) -> None:
        """No lines on the terminal."""

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        if asked.path == "/.well-known/openid-configuration":
            self._answer(self.provider.metadata())
        elif asked.path == "/oauth/jwks":
            self._answer({"keys": [self.provider.key.as_dict(private=False)]})
        elif asked.path == "/oauth/authorize":
            self.send_response(302)
            self.send_header("Location", self.provider.answer(dict(parse_qsl(asked.query))))
            self.end_headers()
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        form = {name: values[0] for name, values in parse_qs(body).items()}
        tokens = self.provider.exchange(form, self.headers.get("Authorization", ""))
        self._answer(tokens or {"error": "invalid_grant"}, 200 if tokens else 400)

    def _answer(self, found: Any, status: int = 200) -> None:
        content = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def providing(token: str) -> Iterator[Provider]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    key = RSAKey.generate_key(2048, {"kid": "k"})
    provider = Provider(f"http://127.0.0.1:{server.server_address[1]}", token, key)
    server.RequestHandlerClass = type("Handler", (_Handler,), {"provider": provider})
    with running(server):
        yield provider
