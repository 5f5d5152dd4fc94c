"""A server watched in a terminal: one line for each thing that happens, Ctrl-C ends it all."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path

from omni_app.server.log import WORDS, Stage
from omni_app.server.prepare import Prepared
from omni_app.server.state import ServerFolder, ServerState
from omni_app.server.supervisor import Supervisor, make_room
from omni_app.settings import Settings

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Narrator:
    """Tells what changed from one state to the next."""

    def __init__(self, write: Callable[[str], None], log: Path, clock: Callable[[], float] = time.time) -> None:
        self._write = write
        self._log = log
        self._clock = clock
        self._last = ServerState()

    def __call__(self, state: ServerState) -> None:
        last, self._last = self._last, state
        if (state.status, state.message) != (last.status, last.message):
            self._tell(state, f"{state.status}: {state.message}")
        if state.kernels and state.kernels != last.kernels:
            self._tell(state, f"Kernels: {', '.join(state.kernels)}")
        if state.status == "ready" and last.status != "ready":
            self._write(f"Talk to it: OMNI_ENDPOINT={state.endpoint} python app.py. Its log: {self._log}")
        before = {stage.number: stage for stage in last.stages}
        for stage in state.stages:
            self._stage(state, before.get(stage.number), stage)

    def _stage(self, state: ServerState, before: Stage | None, stage: Stage) -> None:
        if stage.phase == "waiting" or (before is not None and before.phase == stage.phase):
            return
        self._tell(state, stage.words(0.0) if stage.phase == "ready" else f"{stage.name}: {WORDS[stage.phase]}")

    def _tell(self, state: ServerState, line: str) -> None:
        self._write(f"[{self._clock() - state.began:5.0f} s] {line}" if state.began else line)


def _print(line: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that was closed must not keep the server from being ended
        print(line, flush=True)


def clear(settings: Settings) -> None:
    """Before the plan: end what an earlier server of this data folder left. Raises EngineUnavailable when one works."""
    asyncio.run(make_room(ServerFolder(settings.data_dir)))


def serve(settings: Settings, prepared: Prepared) -> None:
    """Serve until Ctrl-C or a signal. Raises EngineUnavailable with what went wrong."""
    asyncio.run(_serve(settings, prepared))


async def _serve(settings: Settings, prepared: Prepared) -> None:
    folder = ServerFolder(settings.data_dir)
    narrator = Narrator(_print, folder.log)
    supervisor = Supervisor(prepared.launch, folder, report=narrator)
    loop = asyncio.get_running_loop()
    for number in ENDING:
        loop.add_signal_handler(number, supervisor.ask_to_stop)
    await supervisor.run()
