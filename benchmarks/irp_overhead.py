"""What SAGE's plugin adds to a bare HTTP request: `python -m benchmarks.irp_overhead [--calls 300] [--out FILE.json]`.

The server is a process of its own that answers at once, so that all the time measured is the client's and the wire's.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import multiprocessing.connection
import statistics
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from omni_app.irp import OmniIRP

GOAL_MS = 5.0
PROMPT = "What is the capital of France? " * 8
MESSAGE = {"role": "assistant", "content": "The capital of France is Paris. " * 20}
ANSWER = json.dumps({"choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}]}).encode()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._reply(b"process_resident_memory_bytes 1e9\n")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._reply(ANSWER)

    def _reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


def serve(port: multiprocessing.connection.Connection) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.send(server.server_port)
    server.serve_forever()


def bare(port: int) -> None:
    """One request of the same size, with nothing around it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "modalities": ["text"], "max_tokens": 512}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    json.loads(connection.getresponse().read())
    connection.close()


def median_ms(calls: int, ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Milliseconds of each way, taken in turns so that a busy machine slows them all alike."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(calls):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) * 1000 for name, seconds in taken.items()}


def measure(port: int, calls: int) -> dict[str, float]:
    plugin = OmniIRP({"endpoint": f"http://127.0.0.1:{port}", "model_name": "m"})
    first = plugin.init_state(PROMPT, {})
    turns = [{"role": "user", "content": PROMPT}]
    ways: dict[str, Callable[[], object]] = {
        "bare request": lambda: bare(port),
        "get_response": lambda: plugin.get_response(PROMPT),
        "generate_response": lambda: plugin.generate_response(turns),
        "get_chat_response": lambda: plugin.get_chat_response(turns),
        "step": lambda: plugin.step(first),
    }
    median_ms(10, ways)
    return median_ms(calls, ways)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(there,), daemon=True)
    server.start()
    figures = measure(here.recv(), given.calls)
    server.terminate()
    server.join()
    base = figures["bare request"]
    print(f"| call | median ms | added ms | goal {GOAL_MS:g} ms |\n| --- | --- | --- | --- |")
    for name, value in figures.items():
        print(f"| {name} | {value:.2f} | {value - base:.2f} | {'met' if value - base < GOAL_MS else 'missed'} |")
    added = {name: round(value - base, 3) for name, value in figures.items()}
    text = json.dumps({"calls": given.calls, "bare_ms": round(base, 3), "added_ms": added, "goal_ms": GOAL_MS})
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
