import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import uvicorn
from starlette.types import ASGIApp

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests last: Playwright keeps an event loop running in this thread, beside which no other can run."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)
