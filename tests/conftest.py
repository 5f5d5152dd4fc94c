import asyncio
import os
import socket
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import zip_longest
from pathlib import Path

import pytest
import uvicorn
from filelock import FileLock
from starlette.types import ASGIApp

from quantize import environment

# The quantizer's models are tiny, and a worker has a processor: threads that wait for one another only burn it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
Serve = Callable[[ASGIApp], Awaitable[str]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class _Server(uvicorn.Server):
    def __init__(self, app: ASGIApp) -> None:
        super().__init__(uvicorn.Config(app, lifespan="off", log_level="error", timeout_graceful_shutdown=1))
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


@asynccontextmanager
async def _serving(app: ASGIApp) -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = _Server(app)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        await server.up.wait()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await running


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Gives a function that serves an ASGI app on a free loopback port until the test ends, and returns its address."""
    async with AsyncExitStack() as stack:
        yield lambda app: stack.enter_async_context(_serving(app))


@pytest.fixture
def unused_address() -> str:
    """An address on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="session")
def tiny_omni(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3-Omni with every part, in several files, made once for all workers. Read it, never change it."""
    if not environment.ready():
        pytest.skip("the quantizer's environment is not built: make quantize-env")
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "tiny-omni"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            in_environment("tiny_omni.py", folder.with_suffix(".partial"))
            folder.with_suffix(".partial").rename(folder)
    return folder


def in_environment(script: str, *arguments: object) -> None:
    """Run a script of tests/quantize in the quantizer's interpreter."""
    command = [str(environment.python()), str(environment.ROOT / "tests/quantize" / script), *map(str, arguments)]
    subprocess.run(command, env=environment.variables(), check=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first, one that waits for a browser beside one that computes: workers that share the files out in this
    order find the processors free, and end together."""
    marks: defaultdict[Path, set[str]] = defaultdict(set)
    for item in items:
        marks[item.path] |= {mark.name for mark in item.iter_markers()}
    waiting = [file for file, found in marks.items() if "browser" in found]
    computes = {"models", "quantize", "transformers"}
    computing = [file for file, found in marks.items() if found & computes and file not in waiting]
    first = [file for pair in zip_longest(waiting, computing) for file in pair if file]
    places = {file: place for place, file in enumerate(first)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
