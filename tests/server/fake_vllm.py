"""A stand-in for the `vllm` command: plays a recorded start-up log, then serves a scripted engine in vllm's dialect.

The environment variable FAKE_VLLM holds its part as JSON, the fields of `Script`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import gzip
import json
import mimetypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

ROOT = Path(__file__).parents[2]
LOGS = ROOT / "tests/data/vllm_logs"
STAGE = "import signal, time{deaf}; time.sleep(600)"
DEAF = "; signal.signal(signal.SIGTERM, signal.SIG_IGN)"


@dataclass(frozen=True)
class Script:
    log: str = "vllm026_warm_ready"
    says: str = ""
    """More lines to print after the log."""
    exit_code: int | None = None
    """End with this after the log instead of serving; negative for a signal."""
    children: bool = True
    """Have the processes of three stages."""
    deaf: bool = False
    """Ignore SIGTERM, in every process."""
    crash_file: str = ""
    """Crash when this file appears, and remove it."""
    crash_says: str = "(APIServer pid=1) RuntimeError: the fake engine fell over"
    starts_file: str = ""
    """A file that gets one line for each start."""
    refuses: str = ""
    """Answer every chat request with 400 and this message."""


def play(script: Script) -> None:
    with gzip.open(LOGS / f"{script.log}.log.gz", "rt") as lines:
        for line in lines:
            sys.stdout.write(line)
            sys.stdout.flush()
            time.sleep(0.001)
    print(script.says, flush=True)


def stages(script: Script) -> None:
    """Children as vllm has them: one in the session, one in a process group of its own, one in a session of its own."""
    code = STAGE.format(deaf=DEAF if script.deaf else "")
    for apart in ({}, {"process_group": 0}, {"start_new_session": True}):
        subprocess.Popen([sys.executable, "-c", code], **apart)  # type: ignore[call-overload]


def read_files(app: Any, allowed: str) -> Any:
    """The app, which takes media as data URLs alone, with `file://` below one folder, as vllm's MediaConnector does."""

    def read(found: re.Match[str]) -> str:
        path = Path(url2pathname(found[1])).resolve()
        if not (allowed and Path(allowed).resolve() in path.parents):
            return found[0]
        return f'"data:{mimetypes.guess_type(path)[0]};base64,{base64.b64encode(path.read_bytes()).decode()}"'

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await app(scope, receive, send)
        message = await receive()
        body = message["body"]
        while message.get("more_body"):
            message = await receive()
            body += message["body"]
        whole = re.sub(r'"file://([^"]+)"', read, body.decode()).encode()
        waiting = [{"type": "http.request", "body": whole, "more_body": False}]

        async def receive_whole() -> Any:
            return waiting.pop() if waiting else await receive()

        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        return await app(scope, receive_whole, send)

    return wrapped


async def serve(script: Script, host: str, port: int, allowed: str) -> None:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    from omni_app import api
    from omni_app.media import Limits
    from omni_app.runner import Runner
    from omni_app.settings import Settings
    from tests.scripted import ScriptedEngine

    async def refuse(_: object) -> JSONResponse:
        return JSONResponse({"error": {"message": script.refuses, "type": "BadRequestError"}}, 400)

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            if script.deaf:
                yield
                return
            with super().capture_signals():
                yield

    settings = Settings(serve_key=os.environ.get("VLLM_API_KEY", ""))
    runner = Runner(ScriptedEngine(0.001), "", 8)
    runner.start()
    refusals = [Route("/v1/chat/completions", refuse, methods=["POST"])] if script.refuses else []
    app = Starlette(routes=[*refusals, *api.routes(runner, settings, Limits.of(settings))])
    crashing = asyncio.create_task(crash_on_command(script))
    await Server(uvicorn.Config(read_files(app, allowed), host, port, log_level="error", lifespan="off")).serve()
    crashing.cancel()


async def crash_on_command(script: Script) -> None:
    while not (script.crash_file and Path(script.crash_file).exists()):  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.02)
    Path(script.crash_file).unlink()  # noqa: ASYNC240
    print(script.crash_says, flush=True)
    os._exit(1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--omni", action="store_true", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--allowed-local-media-path", default="")
    arguments, _ = parser.parse_known_args()
    script = Script(**json.loads(os.environ.get("FAKE_VLLM", "{}")))
    if script.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if script.starts_file:
        with Path(script.starts_file).open("a") as starts:
            starts.write(f"{os.getpid()} {' '.join(sys.argv[1:])}\n")
    if script.children:
        stages(script)
    play(script)
    if script.exit_code is not None:
        os.kill(os.getpid(), -script.exit_code) if script.exit_code < 0 else os._exit(script.exit_code)
    asyncio.run(serve(script, arguments.host, arguments.port, arguments.allowed_local_media_path))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
