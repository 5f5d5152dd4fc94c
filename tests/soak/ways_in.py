"""Every way in for bytes, as requests gone wrong: our API, the page's recordings and speech, Gradio's own routes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from tests.soak import mutate

Headers = dict[str, str] | list[tuple[str, bytes]]
TOOL = "gradio_api/call/ask"
JOIN = "gradio_api/queue/join"
FUNCTIONS = 90
"""A few more than the page has."""
SEND_JSON = {"content-type": "application/json"}
FOR_MCP = SEND_JSON | {"accept": "application/json, text/event-stream"}
NAMES = (
    "a.png", "", ".", "..", "../../../etc/passwd", "a" * 5000, "a/b\\c", "nul\0l", "CON", "\u202e.png",
    "\U0001f600.wav", "a\r\nb: c", '"; name="other', "%2e%2e%2f", "~root", "-rf", " ",
)  # fmt: skip
GARBAGE = (
    ("cookie", b"omni_visitor=\xff\xfe; =; ;;;=;omni_visitor"), ("cookie", b"a=" + b"b" * 20_000),
    ("cookie", b"access-token-unsecure-x=..%2f; session=eyJ"), ("host", b"[::1"), ("host", b"127.0.0.1:99999999"),
    ("x-forwarded-for", b",,\xff, ::::, " + b"1.1.1.1," * 500), ("x-forwarded-proto", b"https,\xe2\x80\xae"),
    ("x-forwarded-host", b"a/b?c#d\x80"), ("x-gradio-server", b"http://[::"), ("forwarded", b'for="\xff;;'),
    ("origin", b"null"), ("origin", b"http://[::1"), ("referer", b"http://[/?\xff"), ("range", b"bytes=9-1,-,a-"),
    ("accept", b"text/html;q=\xff,*/*;q=nan"), ("accept-encoding", b"gzip;q=-1,\x80"), ("authorization", b"Basic \xff"),
    ("authorization", b"Bearer"), ("content-type", b"multipart/form-data; boundary=" + b"x" * 300),
    ("content-type", b"application/json; charset=utf-7"), ("content-encoding", b"gzip"),
    ("accept-language", b"\xff" * 99),
    ("if-none-match", b'"'), ("if-modified-since", b"yesterday"), ("mcp-session-id", b"\xff"),
    ("last-event-id", b"-1"), ("mcp-protocol-version", b"9999"),
    ("x-http-method-override", b"DELETE"), ("expect", b"nothing"),
)  # fmt: skip
PLACES = (
    "", "config", "health", "metrics", "v1/models", "gradio_api/info", "gradio_api/upload_progress?upload_id=x",
    "gradio_api/queue/status", "gradio_api/mcp/schema", "theme.css", "manifest.json", "gradio_api/startup-events",
    "gradio_api/openapi.json", "system", "quantize", "static/img/logo.svg",
)  # fmt: skip
POSTS = (
    "gradio_api/component_server", "gradio_api/process_recording", "gradio_api/reset", "gradio_api/cancel", "login",
    "gradio_api/stream/x", "gradio_api/stream/x/close", "gradio_api/vibe-edit", "gradio_api/undo-vibe-edit",
    "gradio_api/vibe-code", "gradio_api/vibe-starter-queries", "gradio_api/run/ask", "gradio_api/api/ask",
    "gradio_api/call/v2/ask", "gradio_api/call/send", "gradio_api/profiling/clear", "gradio_api/run-history/connect",
)  # fmt: skip


@dataclass(frozen=True)
class Input:
    target: str
    path: str
    content: bytes = b""
    headers: Headers = field(default_factory=dict)
    method: str = "POST"
    then: str = ""
    """Where Gradio answers the call; filled in from what it says first."""
    lasting: bool = False
    """Whether the answer may be a stream that ends only with its listener."""


def made(dice: random.Random) -> Input:
    return dice.choice(WAYS)(dice)


def chat_body(dice: random.Random) -> Input:
    kind, content = dice.choice(mutate.media())
    body = mutate.question(kind, content, stream=dice.random() < 0.5)
    return Input("chat body", "v1/chat/completions", mutate.spoiled_body(dice, body), SEND_JSON)


def chat_file(dice: random.Random) -> Input:
    body = mutate.question(*mutate.spoiled_file(dice), stream=dice.random() < 0.5)
    return Input("chat file", "v1/chat/completions", json.dumps(body).encode(), SEND_JSON)


def recording(dice: random.Random) -> Input:
    headers = {"content-type": "application/octet-stream"}
    return Input("recording", "gradio_api/utterance", mutate.spoiled_file(dice)[1], headers)


def tool(dice: random.Random) -> Input:
    return Input(
        "tool", TOOL, mutate.spoiled_body(dice, {"data": _asked(dice)}), SEND_JSON, then=f"{TOOL}/{{event_id}}"
    )


def mcp(dice: random.Random) -> Input:
    names = ("message", "attachment", "speech", "voice")
    call = {"name": "ask", "arguments": dict(zip(names, _asked(dice), strict=True))}
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "fuzz", "version": "1"}}
    methods: dict[str, Any] = {
        "tools/call": call, "initialize": hello, "tools/list": {}, "ping": {}, "prompts/get": {"name": "x"},
        "notifications/cancelled": {"requestId": 1}, "resources/read": {"uri": "file:///etc/passwd"},
        "completion/complete": {"ref": 1},
    }  # fmt: skip
    method = dice.choice(("tools/call", *methods))
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": methods[method]}
    return Input("mcp", "gradio_api/mcp/", mutate.spoiled_body(dice, body), FOR_MCP)


def upload(dice: random.Random) -> Input:
    """A form of files and fields with odd names and sizes, as often as not with broken bytes."""
    edge = dice.choice(("edge", "-" * 60, "x", "e" * 70))
    body = b"".join(_part(dice, edge) for _ in range(dice.choice((0, 1, 1, 2, 3, 40)))) + f"--{edge}--\r\n".encode()
    if dice.random() < 0.5:
        body = mutate.spoiled_bytes(dice, body)
    told = dice.choice((edge, edge, edge, edge, "other", "", '"', "x" * 300))
    query = dice.choice(
        ("", "", "?upload_id=", f"?upload_id={dice.randrange(9)}", f"?upload_id={quote(dice.choice(NAMES))}")
    )
    return Input("upload", f"gradio_api/upload{query}", body, {"content-type": f"multipart/form-data; boundary={told}"})


def join(dice: random.Random) -> Input:
    """An event of the page, and what its stream then says."""
    who = f"fuzz{dice.getrandbits(64)}"  # two listeners would take from each other
    message = {"text": dice.choice(("hello", "slow", "", " ")), "files": dice.choice(([], [{"path": "/etc/passwd"}]))}
    data = dice.choice(([], [message, "", True, "automatic", 0, 0.2, ""], ["", None], [message], [None] * 9))
    body = {
        "data": data,
        "fn_index": dice.randrange(FUNCTIONS),
        "session_hash": who,
        "event_data": None,
        "trigger_id": 1,
    }
    then = f"gradio_api/queue/data?session_hash={who}"
    return Input("join", JOIN, mutate.spoiled_body(dice, body), SEND_JSON, then=then)


def stream(dice: random.Random) -> Input:
    session = dice.choice(("nobody", "", *NAMES))
    paths = ("gradio_api/queue/data?session_hash={}", f"{TOOL}/{{}}", "gradio_api/voice/{}", "gradio_api/export/{}",
             "gradio_api/upload_progress?upload_id={}", "gradio_api/file={}", "gradio_api/stream/{}/1/2/playlist.m3u8",
             "gradio_api/proxy={}", "gradio_api/call/{}/x")  # fmt: skip
    return Input(
        "stream", dice.choice(paths).format(quote(session, safe=dice.choice(("", "/")))), method="GET", lasting=True
    )


def form(dice: random.Random) -> Input:
    """Forms and bodies for routes of Gradio's that the page has no use for."""
    raw = upload(dice) if dice.random() < 0.5 else join(dice)
    return Input("form", dice.choice(POSTS), raw.content, raw.headers)


def header(dice: random.Random) -> Input:
    given = [dice.choice(GARBAGE) for _ in range(dice.randrange(1, 4))]
    method, content = dice.choice(
        (("GET", b""), ("GET", b""), ("POST", b"{}"), ("HEAD", b""), ("PUT", b"x"), ("OPTIONS", b""))
    )
    path = dice.choice((*PLACES, JOIN, TOOL, "gradio_api/upload", "gradio_api/utterance", "v1/chat/completions"))
    return Input("header", path, content, given, method)


WAYS: tuple[Callable[[random.Random], Input], ...] = (
    chat_body, chat_file, recording, tool, mcp, upload, join, stream, form, header,
)  # fmt: skip


def _asked(dice: random.Random) -> list[Any]:
    """The four values of the tool."""
    kind, content = dice.choice(mutate.media())
    url = mutate.question(kind, content, stream=False)["messages"][1]["content"][1][mutate.KEY_OF[kind]]["url"]
    return ["what is it", url, True, "low"]


def _part(dice: random.Random, edge: str) -> bytes:
    field_name = dice.choice(("files", "files", "files", "", "data", "session_hash", "a" * 9000))
    name = dice.choice((None, *NAMES, *("a.png",) * 10))
    filename = "" if name is None else f'; filename="{name}"'
    head = f'--{edge}\r\nContent-Disposition: form-data; name="{field_name}"{filename}\r\n'
    kind = dice.choice(
        ("", "Content-Type: image/png\r\n", "Content-Type: \r\n", "Content-Transfer-Encoding: base64\r\n")
    )
    content = dice.choice((b"", b"x", dice.randbytes(5000), mutate.spoiled_file(dice)[1]))
    return (head + kind + "\r\n").encode() + content + b"\r\n"
