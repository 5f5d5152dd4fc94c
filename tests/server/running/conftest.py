"""A stand-in for the server's environment, and supervisors in a hurry."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest

from omni_app.errors import EngineUnavailable
from omni_app.server import process
from omni_app.server.state import ServerFolder, ServerState
from omni_app.server.supervisor import Launch, Patience, Supervisor
from tests.server import fake_vllm
from tests.server.fake_vllm import Script

HASTE = Patience(poll_s=0.02, grace_s=5.0, last_words_s=1.0, unhealthy_s=0.5, pauses_s=(0.01, 0.02, 0.03))


@dataclass
class Watched:
    """A supervisor that runs, and everything that it reported."""

    supervisor: Supervisor
    states: list[ServerState]
    running: asyncio.Task[None]
    news: asyncio.Event

    async def until(self, condition: Callable[[ServerState], bool]) -> ServerState:
        """The first state from now on that the condition holds for. Raises what the supervisor raises."""
        async with asyncio.timeout(60):
            while not (condition(self.supervisor.state) or self.running.done()):
                self.news.clear()
                waiting = asyncio.create_task(self.news.wait())
                await asyncio.wait({waiting, self.running}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
        if self.running.done():
            self.running.result()
        return self.supervisor.state

    async def failed(self) -> str:
        """What it said when it gave up."""
        with pytest.raises(EngineUnavailable) as caught:
            await asyncio.wait_for(self.running, 60)
        return str(caught.value)


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """An environment whose `vllm` is the stand-in."""
    command = tmp_path / "venv/bin/vllm"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {fake_vllm.__file__} "$@"\n')
    command.chmod(0o755)
    # The quick start is `python -P fast_start.py SWITCHES ...`; what follows is for vllm.
    python = command.with_name("python")
    python.write_text(f'#!/bin/sh\nshift 3\nexec {sys.executable} {fake_vllm.__file__} "$@"\n')
    python.chmod(0o755)
    return tmp_path / "venv"


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    return ServerFolder(tmp_path / "data")


@pytest.fixture
def launch(venv: Path, free_port: int) -> Launch:
    argv = (str(venv / "bin/vllm"), "serve", "/models/omni", "--omni", "--host", "127.0.0.1", "--port", str(free_port))
    return Launch(argv, dict(os.environ), "/models/omni", "127.0.0.1", free_port, users=8)


def scripted(launch: Launch, script: Script) -> Launch:
    return replace(launch, env={**launch.env, "FAKE_VLLM": json.dumps(asdict(script))})


@asynccontextmanager
async def watched(launch: Launch, folder: ServerFolder, patience: Patience = HASTE) -> AsyncIterator[Watched]:
    """A supervisor that runs until the end of the block, after which no process of its server may be left."""
    states: list[ServerState] = []
    news = asyncio.Event()

    def report(state: ServerState) -> None:
        states.append(state)
        news.set()

    supervisor = Supervisor(launch, folder, patience, report)
    one = Watched(supervisor, states, asyncio.create_task(supervisor.run()), news)
    try:
        yield one
    finally:
        supervisor.ask_to_stop()
        await asyncio.gather(one.running, return_exceptions=True)
    servers = {state.server for state in states if state.server}
    assert [process.members(server) for server in servers] == [[]] * len(servers)
