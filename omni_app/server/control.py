"""Starting and stopping the server from the app: it and its supervisor live on when the app ends or is reloaded."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio.to_thread

import omni_app
from omni_app.errors import EngineUnavailable
from omni_app.server import prepare, process, supervisor
from omni_app.server.prepare import Order, Prepared
from omni_app.server.state import ServerFolder, ServerState
from omni_app.settings import Settings


def with_own_server(settings: Settings) -> tuple[Settings, str]:
    """The settings with the endpoint of this data folder's server, when one is ready and no other engine is asked
    for; and the reason as one sentence, empty when nothing was changed."""
    state = ServerFolder(settings.data_dir.expanduser().absolute()).read()
    runs = state.status == "ready" and state.server is not None and process.is_running(state.server)
    if settings.engine != "auto" or settings.endpoint or not runs:
        return settings, ""
    media = Path(state.local_media) if state.local_media else None
    update = {"engine": "vllm-omni", "endpoint": state.endpoint, "local_media": media}
    found = settings.model_copy(update=update)
    return found, "The server that was started from this data folder answers."


class ServerControl:
    """The server of one data folder, as the app sees it. The folder is the truth; this only remembers its child."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.folder = ServerFolder(settings.data_dir.expanduser().absolute())
        self._child: subprocess.Popen[bytes] | None = None
        self._began = 0.0

    def state(self) -> ServerState:
        """Cheap enough to ask every second."""
        state = self.folder.read()
        if self._child is None:
            return state
        ended = self._child.poll()
        if state.works or (state.supervisor is not None and state.supervisor.pid == self._child.pid):
            return state  # of the child, or of one that a terminal started since
        if ended is None:
            return ServerState(status="starting", message="Looking at the machine and the model.", began=self._began)
        if ended == -signal.SIGTERM:
            return ServerState(status="stopped", message="The server was stopped before it had begun.")
        return ServerState(status="failed", message=self._last_words()) if ended else state

    def prepare(self, order: Order, only_plan: bool = False) -> Prepared:
        """The plan, without starting anything. Reads the model's headers: seconds. Raises what `prepare` raises."""
        return prepare.prepare(self._settings, order, only_plan)

    def make_room(self) -> None:
        """Before a plan that shall be started: end what a supervisor that died left. Not for an event loop. Raises
        EngineUnavailable when a server works already."""
        self._require_none()
        asyncio.run(supervisor.make_room(self.folder))

    def start(self, order: Order) -> None:
        """Start a supervisor that outlives the app. Raises EngineUnavailable when a server works already."""
        self._require_none()
        self.folder.path.mkdir(parents=True, exist_ok=True)
        with self.folder.supervisor_log.open("wb") as output:
            self._began = time.time()
            self._child = subprocess.Popen(
                self._command(order), env=self._environment(), cwd=Path(omni_app.__file__).parent.parent,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    async def stop(self) -> None:
        """Raises EngineUnavailable when something is left."""
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()  # before it wrote its state it could not be found there
            await anyio.to_thread.run_sync(self._child.wait)
        await supervisor.stop(self.folder)

    def _require_none(self) -> None:
        state = self.state()
        if state.works:
            raise EngineUnavailable(f"A server is {state.status} already ({state.model}). Stop it first.")

    def _command(self, order: Order) -> list[str]:
        settings, wishes = self._settings, order.wishes
        return [
            sys.executable, "-m", "omni_app", "serve", str(order.model.expanduser().absolute()),
            "--speech" if wishes.speech else "--no-speech",
            f"--users={wishes.users}", f"--context={wishes.context_tokens}",
            "--fast-start" if wishes.fast_start else "--no-fast-start",
            f"--data-dir={settings.data_dir.expanduser().absolute()}",
            f"--cache-dir={settings.cache_dir.expanduser().absolute()}",
            f"--serve-venv={settings.serve_venv.expanduser().absolute()}",
            f"--serve-host={settings.serve_host}", f"--serve-port={settings.serve_port}",
            *([f"--deploy-config={order.deploy_config.expanduser().absolute()}"] if order.deploy_config else []),
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        key = self._settings.api_key.get_secret_value()
        return {**os.environ, **({"OMNI_API_KEY": key} if key else {})}

    def _last_words(self) -> str:
        lines = self.folder.supervisor_log.read_text(errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.strip()), "The server's supervisor ended without a word.")
