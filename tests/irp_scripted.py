"""A scripted server for SAGE's plugin, and the ways in which SAGE loads the file.

What it answers has the form recorded from vllm-omni 0.30.0 (tests/data/vllm_omni_0_30).
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

PLUGIN = Path(__file__).parents[1] / "omni_app" / "irp.py"
SAGE = Path(__file__).parent / "data" / "sage"
METRICS = "# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes 2.097152e+08\n"
_names = itertools.count()


def load(path: Path = PLUGIN) -> ModuleType:
    """As SAGE's daemon does it: executed from its path, without a place in `sys.modules`."""
    spec = importlib.util.spec_from_file_location(f"omni_irp_{next(_names)}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dropped_into_sage(folder: Path, *, link: bool = False) -> Path:
    """The plugin in a tree like SAGE's, beside a base.py that behaves as SAGE's does."""
    shutil.copytree(SAGE, folder / "sage")
    place = folder / "sage" / "irp" / "plugins" / "omni_irp.py"
    place.parent.mkdir()
    if link:
        place.symlink_to(PLUGIN)
    else:
        shutil.copy(PLUGIN, place)
    return place


def whole(text: str | None, **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    return {"id": "chatcmpl-1", "object": "chat.completion", "model": "tiny", "choices": [choice], "usage": usage}


def event(content: str, modality: str = "text", finish: str | None = None, **choice: Any) -> bytes:
    entry = {"index": 0, "delta": {"content": content}, "finish_reason": finish, **choice}
    return b"data: " + json.dumps({"choices": [entry], "modality": modality}).encode() + b"\n\n"


Answer = dict[str, Any] | bytes | tuple[int, bytes]


class Scripted:
    """Serves `answer(request)`: a dict is a JSON body, bytes are an event stream, a pair is a refusal."""

    def __init__(self, answer: Callable[[dict[str, Any]], Answer]) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.health = 200
        self.metrics = METRICS
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                outer.paths.append(self.path)
                pages = {"/v1/models": b'{"data": [{"id": "tiny"}]}', "/metrics": outer.metrics.encode()}
                self.reply(outer.health if self.path == "/health" else 200, pages.get(self.path, b""), "text/plain")

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.paths.append(self.path)
                outer.asked.append(request)
                outer.headers.append(dict(self.headers))
                found = answer(request)
                if isinstance(found, dict):
                    self.reply(200, json.dumps(found).encode(), "application/json")
                elif isinstance(found, bytes):
                    self.reply(200, found, "text/event-stream; charset=utf-8")
                else:
                    self.reply(found[0], found[1], "application/json")

            def reply(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Raw:
    """A server of bare bytes: hands each connection, with its request read, to `behave` in a thread of its own."""

    def __init__(self, behave: Callable[[socket.socket], None], port: int = 0) -> None:
        self._behave = behave
        self._listener = socket.create_server(("127.0.0.1", port))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            data = connection.recv(65536)
            head, _, body = data.partition(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.split(b"\r\n") if line.lower()[:15] == b"content-length:"), 0
            )
            while len(body) < length:
                body += connection.recv(65536)
            try:
                self._behave(connection)
            except OSError:
                return  # the plugin has gone, as it should
