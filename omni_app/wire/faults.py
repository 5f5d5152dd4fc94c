"""Errors on the wire: ours into OpenAI's shape, and the three shapes that vllm-omni answers with into ours."""

from __future__ import annotations

import json
from collections.abc import Mapping

from omni_app.conversation import clean
from omni_app.errors import BadRequest, EngineAtCapacity, EngineFailed, EngineUnavailable, OmniError

LONGEST_MESSAGE = 300
"""Characters of a server's own words that we repeat; the rest is most likely a page of HTML or a traceback."""
TOO_LONG = ("maximum context length", "max_model_len")
"""vllm-omni 0.30 answers 500 to a prompt over its context; these words tell it from a failure."""


def error_body(error: OmniError, status: int | None = None) -> dict[str, object]:
    """OpenAI's error shape. `code` is the HTTP status, as vllm-omni has it."""
    return {"error": {"message": str(error), "type": error.kind, "param": None, "code": status or error.status}}


def error_from(status: int, body: bytes, *, server: str) -> OmniError:
    """The error behind an HTTP answer of `status`; `server` names the server for the user.

    Accepts `{"error": {"message", ...}}`, `{"error": "..."}`, `{"detail": ...}` and anything else as plain text.
    """
    said = words_in(body)
    if status in (401, 403):
        return EngineUnavailable(
            f"{server} refused our key (HTTP {status}). Set OMNI_API_KEY to the key that it was started with."
        )
    if status == 404:
        return EngineUnavailable(_join(f"{server} does not know this model or address (HTTP 404)", said))
    if status == 429:
        return EngineAtCapacity(_join(f"{server} answers as many as it can; please try again in a moment", said))
    if status in (502, 503, 504):
        return EngineUnavailable(_join(f"{server} is not ready, it may still be loading (HTTP {status})", said))
    if any(words in said for words in TOO_LONG):
        return BadRequest(
            _join("The conversation is longer than the model can take in; shorten it or start a new one", said)
        )
    if 400 <= status < 500:
        return BadRequest(_join("The model's server did not accept the request", said))
    return EngineFailed(_join(f"{server} failed (HTTP {status})", said))


def error_in_stream(chunk: Mapping[str, object], *, begun: bool) -> OmniError:
    """The error behind a `{"error": ...}` chunk. Once the answer has `begun` it is always EngineFailed."""
    said = _words(chunk)
    detail = chunk.get("error")
    code = detail.get("code") if isinstance(detail, Mapping) else None
    if begun:
        return EngineFailed(_join("The model's server failed in the middle of the answer", said))
    if code == 429:
        return EngineAtCapacity(said or "The model's server answers as many as it can.")
    if isinstance(code, int) and 400 <= code < 500:
        return BadRequest(_join("The model's server did not accept the request", said))
    if code == 503:
        return EngineUnavailable(_join("The model's server is not ready", said))
    return EngineFailed(_join("The model's server failed before it said anything", said))


def words_in(body: bytes) -> str:
    """What an HTTP error says for people, cut to 300 characters; empty for a page of HTML."""
    return _words(_json_or_text(body))


def _json_or_text(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        text = body.decode("utf-8", "replace").strip()
        return "" if text.startswith("<") else text


def _words(said: object, depth: int = 4) -> str:
    """The sentence for a person inside an error of any shape; empty when there is none."""
    for key in ("error", "message", "detail", "msg"):
        if depth and isinstance(said, Mapping) and said.get(key):
            return _words(said[key], depth - 1)
    if depth and isinstance(said, list):
        return _shortened("; ".join(filter(None, (_words(one, depth - 1) for one in said))))
    return _shortened(said) if isinstance(said, str) else ""


def _shortened(text: str) -> str:
    text = " ".join(clean(text).split())
    return text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + "…"


def _join(ours: str, said: str) -> str:
    return f"{ours}: {said}" if said else f"{ours}."
