"""Watches over one server: starts it, follows its log, warms it up, starts it again after a crash, and ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from omni_app.engines.vllm_omni import VllmOmniEngine
from omni_app.errors import BadRequest, EngineUnavailable, OmniError
from omni_app.server import process
from omni_app.server.failures import Failure, explain, known
from omni_app.server.log import Follower, StartupLog
from omni_app.server.process import ProcessId
from omni_app.server.state import ServerFolder, ServerState
from omni_app.server.warmup import warm_up
from omni_app.settings import Settings


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything that one start needs; `prepare.launch_of` makes it from settings and a model folder."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    model: str
    host: str
    port: int
    api_key: str = ""
    speech: bool = True
    users: int = 1
    """At once, for which it is warmed up."""
    deploy_yaml: str = ""
    """Written to the folder's deploy.yaml before each start; empty when `argv` names another file."""
    memory: str = ""
    """How the plan shares out the GPU's memory, as one sentence for when it does not suffice."""
    local_media: str = ""
    """The folder that `argv` allows the server to read media from; empty for none."""

    @property
    def endpoint(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long things may take, in seconds."""

    poll_s: float = 0.5
    start_s: float = 3600.0
    """From the start of the process to a healthy server; vllm's own limits strike first."""
    warm_up_silence_s: float = 600.0
    """Between two events of a first answer, which compiles kernels."""
    last_words_s: float = 5.0
    """How long a server that failed its warm-up may take to end by itself."""
    unhealthy_s: float = 60.0
    """How long a server that was ready may refuse its health before it counts as dead."""
    grace_s: float = 10.0
    """From asking to killing."""
    pauses_s: tuple[float, ...] = (5.0, 20.0, 60.0)
    """Before each restart after a crash; their number is the number of restarts."""
    forgive_s: float = 1800.0
    """A server that was ready for so long has all its restarts again."""


@dataclass
class Supervisor:
    """Runs one server at a time until it is told to stop. Everything it learns goes to the state file and `report`."""

    launch: Launch
    folder: ServerFolder
    patience: Patience = field(default_factory=Patience)
    report: Callable[[ServerState], None] = lambda state: None
    state: ServerState = field(default_factory=ServerState)

    def __post_init__(self) -> None:
        self._stop = asyncio.Event()

    def ask_to_stop(self) -> None:
        """Ends `run` in order; for signal handlers and other tasks of the same loop."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until told to stop. Raises EngineUnavailable when the server cannot run, and why."""
        with self.folder.locked():
            await _end_what_was_left(self.folder, self.patience.grace_s)
            self._require_free_port()
            self.state = self._as_before()
            try:
                await self._serve()
            except OSError as error:
                raise EngineUnavailable(
                    f"The server cannot be kept: {self.folder.path} cannot be written ({error.strerror or error}). "
                    "Make room there, or choose another folder with --data-dir."
                ) from error

    async def _serve(self) -> None:
        try:
            failure = await self._lives()
        except OmniError as error:
            failure = Failure(str(error), retry=False)
        if failure is not None:
            left = self.state.server if self.state.server and process.members(self.state.server) else None
            self._publish(status="failed", message=failure.sentence, server=left)
            raise EngineUnavailable(failure.sentence)
        self._publish(status="stopped", message="The server was stopped.", stages=(), server=None)

    def _as_before(self) -> ServerState:
        """What is known of earlier starts of the same model stays known."""
        before, fresh = self.folder.read(), ServerState(supervisor=process.identify(os.getpid()))
        if before.model != self.launch.model:
            return fresh
        return fresh.model_copy(update={"cold_start_s": before.cold_start_s, "warm_start_s": before.warm_start_s})

    async def _lives(self) -> Failure | None:
        """One life after the other; None when it was told to stop."""
        crashes = 0
        while True:
            failure = await self._life(crashes)
            was_ready = self.state.ready_after_s is not None
            # What was ready once can be again, whatever it died of.
            if failure is None or not (failure.retry or was_ready):
                return failure
            ready_s = time.time() - self.state.began - (self.state.ready_after_s or 0.0)
            crashes = 0 if self.state.ready_after_s and ready_s > self.patience.forgive_s else crashes
            if crashes == len(self.patience.pauses_s):
                return Failure(f"{failure.sentence} It was started again {crashes} times, each time in vain.")
            pause_s = self.patience.pauses_s[crashes]
            crashes += 1
            again = f"Starting again in {pause_s:g} s ({crashes} of {len(self.patience.pauses_s)})."
            self._publish(status="pausing", message=f"{failure.sentence} {again}", server=None, stages=())
            if await self._stopped_within(pause_s):
                return None
            self._require_free_port()

    async def _life(self, restarts: int) -> Failure | None:
        log = self.folder.fresh_log()
        if self.launch.deploy_yaml:
            self.folder.deploy.write_text(self.launch.deploy_yaml)
        child, server = process.start(self.launch.argv, self.launch.env, log)
        told = StartupLog()
        try:
            self._publish(
                status="starting", model=self.launch.model, endpoint=self.launch.endpoint, message="The server starts.",
                began=time.time(), restarts=restarts, server=server, stages=(), kernels=(), ready_after_s=None,
                local_media=self.launch.local_media,
            )  # fmt: skip
            return await _first(self._watch(child, Follower(log), told), self._make_ready_and_guard(told))
        finally:
            await self._end(child, server)

    async def _watch(self, child: subprocess.Popen[bytes], follower: Follower, told: StartupLog) -> Failure | None:
        """Follow the log until the process ends, or it shall stop."""
        while child.poll() is None:
            self._follow(list(follower.lines()), told)
            if await self._stopped_within(self.patience.poll_s):
                return None
        self._follow(list(follower.flush()), told)
        return explain(told.lines, child.returncode, self.launch.memory)

    def _follow(self, lines: list[str], told: StartupLog) -> None:
        if sum(told.feed(line) for line in lines):  # any() would leave out the lines after the first that tells
            self._publish(stages=tuple(told.stages), kernels=tuple(told.kernels))

    async def _make_ready_and_guard(self, told: StartupLog) -> Failure | None:
        """Bring the server to ready and guard its health; ends only when something is wrong."""
        async with httpx.AsyncClient(base_url=self.launch.endpoint, trust_env=False, timeout=10.0) as client:
            deadline = time.monotonic() + self.patience.start_s
            while not await _healthy(client):
                if time.monotonic() > deadline:
                    return Failure(f"The server did not become ready within {self.patience.start_s:.0f} s.")
                await asyncio.sleep(self.patience.poll_s)
            if (failure := await self._warm_up()) is not None:
                # A server that died of it says why in its log, and `_watch` reads that.
                await asyncio.sleep(self.patience.last_words_s)
                return failure
            self._publish_ready(time.time() - self.state.began, told.compiled)
            return await self._guard(client)

    def _publish_ready(self, seconds: float, cold: bool) -> None:
        caches, name = ("compiled kernels anew", "cold_start_s") if cold else ("found its kernels", "warm_start_s")
        said = f"The start took {seconds:.0f} s and {caches}."
        self._publish(status="ready", ready_after_s=seconds, message=said, **{name: seconds})

    async def _warm_up(self) -> Failure | None:
        settings = Settings(
            endpoint=self.launch.endpoint, api_key=self.launch.api_key, silence_seconds=self.patience.warm_up_silence_s
        )
        engine = VllmOmniEngine(settings, tries=1)
        try:
            await engine.start()
            async for step in warm_up(engine, speech=self.launch.speech, users=self.launch.users):
                self._publish(status="warming up", message=f"Warming up: {step}.")
        except OmniError as error:
            said = f"The server started, but its warm-up failed. {error}"
            return known(str(error)) or Failure(said, retry=not isinstance(error, BadRequest))
        finally:
            await engine.close()
        return None

    async def _guard(self, client: httpx.AsyncClient) -> Failure:
        healthy_at = time.monotonic()
        while True:
            await asyncio.sleep(self.patience.poll_s)
            if await _healthy(client):
                healthy_at = time.monotonic()
            elif time.monotonic() - healthy_at > self.patience.unhealthy_s:
                return Failure(f"The server said for {self.patience.unhealthy_s:.0f} s that it is not healthy.")

    async def _end(self, child: subprocess.Popen[bytes], server: ProcessId) -> None:
        try:
            if self._stop.is_set():
                self._publish(status="stopping", message="Ending every process of the server.")
        finally:
            await process.end(server, self.patience.grace_s)
            child.wait()

    def _require_free_port(self) -> None:
        """Raises EngineUnavailable at once, where the server would only find out later, and a stranger's health might
        be taken for its own."""
        family = socket.AF_INET6 if ":" in self.launch.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.launch.host, self.launch.port))
            except OSError as error:
                raise EngineUnavailable(
                    f"Port {self.launch.port} on {self.launch.host} cannot be used ({error.strerror}). Stop the "
                    "program that has it, or choose another with --serve-port."
                ) from error

    async def _stopped_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)
        return self._stop.is_set()

    def _publish(self, **changes: object) -> None:
        self.state = self.state.model_copy(update=changes)
        self.folder.write(self.state)
        self.report(self.state)


async def make_room(folder: ServerFolder, grace_s: float = 10.0) -> None:
    """End what a supervisor that died left running: a plan made before that would leave the GPU's memory to it.

    Raises EngineUnavailable when a supervisor works here, or something cannot be ended.
    """
    with folder.locked():
        await _end_what_was_left(folder, grace_s)


async def _end_what_was_left(folder: ServerFolder, grace_s: float) -> None:
    """A server whose supervisor died keeps the GPU; nobody would watch it, so it ends here."""
    left = folder.read().server
    if left is not None and process.members(left):
        await process.end(left, grace_s)


async def stop(folder: ServerFolder, grace_s: float = 40.0) -> None:
    """Stop the server of a folder from outside: by its supervisor, or directly when that is gone.

    Only processes whose number and start both match are touched. Raises EngineUnavailable.
    """
    state = folder.read()
    if state.supervisor and process.send(state.supervisor, signal.SIGTERM):
        deadline = time.monotonic() + grace_s
        while process.is_running(state.supervisor):
            if time.monotonic() > deadline:
                raise EngineUnavailable("The server is still stopping; look again in a moment.")
            await asyncio.sleep(0.1)
    if state.server and process.members(state.server):
        await process.end(state.server, grace_s / 2)
    ended = folder.read()
    if ended.works or ended.server:
        folder.write(
            ended.model_copy(update={"status": "stopped", "message": "The server was stopped.", "server": None})
        )


async def _first(*works: Coroutine[Any, Any, Failure | None]) -> Failure | None:
    """What the first of them to end says; the others are dropped."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _healthy(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health")).status_code == 200
    except httpx.HTTPError:
        return False
