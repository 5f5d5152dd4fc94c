"""A network that can go away without a word, as Wi-Fi does: nothing is forwarded, closed or refused."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator


class Line:
    """Carries connections to a port of this machine. Those that a cut found stay dead when the line is mended, as
    behind a router that has forgotten them."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._whole = True
        self._pumps: set[asyncio.Task[None]] = set()
        self._ends: list[asyncio.StreamWriter] = []
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def cut(self) -> None:
        self._loop.call_soon_threadsafe(self._cut)

    def mend(self) -> None:
        self._loop.call_soon_threadsafe(setattr, self, "_whole", True)

    def _cut(self) -> None:
        self._whole = False
        for pump in self._pumps:
            pump.cancel()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._ends.append(writer)  # a writer that nobody holds would be closed
        if not self._whole:
            return
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._to)
        self._ends.append(there_writer)
        for source, sink in ((reader, there_writer), (there_reader, writer)):
            pump = asyncio.create_task(_pump(source, sink))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _open(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        self._cut()
        for writer in self._ends:
            writer.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await source.read(65536):
            sink.write(piece)
            await sink.drain()
        sink.close()


@contextlib.contextmanager
def line(to: int) -> Iterator[Line]:
    made = Line(to)
    thread = threading.Thread(target=made._loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(made._open(), made._loop).result()
    try:
        yield made
    finally:
        asyncio.run_coroutine_threadsafe(made._close(), made._loop).result()
        made._loop.call_soon_threadsafe(made._loop.stop)
        thread.join()
