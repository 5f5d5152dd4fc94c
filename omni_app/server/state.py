"""What is known of the server of one data folder: kept on disk, so that a reloaded app finds a running server again."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from filelock import BaseFileLock, FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from omni_app.errors import EngineUnavailable
from omni_app.server import process
from omni_app.server.log import Stage, empty_when_large
from omni_app.server.process import ProcessId

Status = Literal["none", "starting", "warming up", "ready", "pausing", "stopping", "stopped", "failed"]
WORKING: tuple[Status, ...] = ("starting", "warming up", "ready", "pausing", "stopping")
CHANGING: tuple[Status, ...] = ("starting", "warming up", "pausing", "stopping")


_EMPTY = re.compile(r"\s*(?:\(\w+ pid=\d+\))?\s*")
"""A line that bears at most the name of its process."""


class ServerState(BaseModel):
    """One moment of a server's life, as its supervisor wrote it last."""

    model_config = ConfigDict(frozen=True)

    status: Status = "none"
    model: str = ""
    endpoint: str = ""
    message: str = ""
    """One sentence: what is going on, or why it ended."""
    stages: tuple[Stage, ...] = ()
    kernels: tuple[str, ...] = ()
    began: float = 0.0
    """When this start began, seconds since the epoch."""
    ready_after_s: float | None = None
    cold_start_s: float | None = None
    """Of the last start that compiled its kernels; warm-up included, as in `ready_after_s`."""
    warm_start_s: float | None = None
    """Of the last start that found them compiled."""
    local_media: str = ""
    """The folder from which it may read media by itself; empty for none."""
    restarts: int = 0
    supervisor: ProcessId | None = None
    server: ProcessId | None = None

    @property
    def works(self) -> bool:
        return self.status in WORKING

    def lines(self, now: float | None = None) -> list[str]:
        """The state in words, one line for the server and one for each stage."""
        now = time.time() if now is None else now
        lasted = f", {now - self.began:.0f} s" if self.status in CHANGING and self.began else ""
        head = f"{self.status}{lasted}: {self.message}" if self.message else f"{self.status}{lasted}"
        return [head, *(f"  {stage.words(now)}" for stage in self.stages)]


class ServerFolder:
    """The files of the server: `state.json`, `server.log`, `deploy.yaml` and the lock, in a folder of the data."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir.expanduser().absolute() / "server"
        self.log = self.path / "server.log"
        self.supervisor_log = self.path / "supervisor.log"
        self.deploy = self.path / "deploy.yaml"
        self._state = self.path / "state.json"

    def read(self) -> ServerState:
        """The state as it is now: a supervisor that died without a word is noticed."""
        try:
            state = ServerState.model_validate_json(self._state.read_bytes())
        except FileNotFoundError:
            return ServerState()
        except (OSError, ValidationError):
            return ServerState(status="none", message=f"{self._state} cannot be read; start the server again.")
        if state.works and not (state.supervisor and process.is_running(state.supervisor)):
            return self._without_supervisor(state)
        return state

    def _without_supervisor(self, state: ServerState) -> ServerState:
        if state.server and process.is_running(state.server) and state.status == "ready":
            empty_when_large(self.log)
            said = "The server runs, but nobody watches it any more: it would not be started again after a crash."
            return state.model_copy(update={"message": said})
        said = "The program that watched the server ended without stopping it in order; start it again."
        return state.model_copy(update={"status": "failed", "message": said})

    def write(self, state: ServerState) -> None:
        """Replace the state in one step, so that a reader never sees half of it."""
        self.path.mkdir(parents=True, exist_ok=True)
        fresh = self._state.with_suffix(f".{os.getpid()}.tmp")
        fresh.write_text(state.model_dump_json())
        fresh.replace(self._state)

    def tail(self, lines: int) -> list[str]:
        """The last lines of the server's log."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 400 * lines))
                data = file.read()
        except OSError:
            return []
        # Of a progress bar only its last state is of interest.
        told = (line.rpartition("\r")[2] for line in data.decode("utf-8", "replace").replace("\r\n", "\n").split("\n"))
        return [line for line in told if not _EMPTY.fullmatch(line)][-lines:]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one supervisor per folder. Raises EngineUnavailable; a supervisor that dies lets go."""
        lock = self._lock()
        try:
            yield
        finally:
            lock.release()

    def _lock(self) -> BaseFileLock:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / "lock", timeout=0)
            lock.acquire()
            return lock
        except Timeout as error:
            state = self.read()
            raise EngineUnavailable(
                f"A server of this data folder is already {state.status} ({state.model}, {state.endpoint}). "
                "Stop it first, or use another --data-dir and --serve-port."
            ) from error
        except OSError as error:
            raise EngineUnavailable(f"{self.path} cannot be written. Choose another folder with --data-dir.") from error

    def fresh_log(self) -> Path:
        """An empty log; the one of the start before is kept beside it."""
        self.path.mkdir(parents=True, exist_ok=True)
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.1"))
        self.log.touch(mode=0o600)
        return self.log
