"""A quantization job: a folder on disk is the truth, so that any page, process or reboot finds it again.

jobs/<id>/request.json     what was asked
          state.json       how it stands; written whole or not at all
          progress.jsonl   one line a step
          log.txt          everything the worker printed
          calibration/     what was captured from the model; a second run goes on from it
          verification.*   the report, of a failed job too
          lock             held while a process looks after the job; let go by its death
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from quantize import folder
from quantize.errors import BadRequest, JobStopped
from quantize.progress import Progress
from quantize.schemes import Recipe

ROOT = Path(__file__).resolve().parent.parent
_LOOK_SECONDS = 0.5
"""Who only asks whether a job is attended holds its lock for a moment as well."""
_UNATTENDED_SECONDS = 30.0
"""A queued job that nobody has looked after for so long has been forgotten."""


class Status(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    """Its process died: a crash, a reboot. `start` goes on from the captured calibration."""


LIVE = (Status.QUEUED, Status.RUNNING)
Task = Literal["quantize", "convert", "verify"]


@dataclass(frozen=True, slots=True)
class Request:
    source: str
    """A model folder, or, to quantize it, a hub id."""
    output: str
    """What can be served afterwards: the folder that is made, or the one that is verified."""
    recipe: Recipe | None
    """None for a task that quantizes nothing."""
    calibration: str = ""
    """A folder or a JSONL file of samples; empty: the small set that comes with this package."""
    task: Task = "quantize"
    original: str = ""
    """The model that a verified one was made from; empty: it is verified alone."""
    commit: str = ""
    """Of a model on a hub: what was looked at when the job was made, wherever its branch goes; empty: where that is."""

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Request:
        recipe = found["recipe"] and Recipe(**{**found["recipe"], "parts": tuple(found["recipe"]["parts"])})
        return cls(**{**found, "recipe": recipe})


@dataclass(frozen=True, slots=True)
class State:
    status: Status
    message: str = ""
    """For the user: what failed and the way out, or where the result lies."""
    created: float = 0.0
    """Seconds since the epoch, as the others."""
    started: float = 0.0
    ended: float = 0.0
    pid: int = 0
    """The process that looks after the job."""


@dataclass(frozen=True, slots=True)
class Job:
    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def request(self) -> Request:
        return Request.from_dict(json.loads((self.folder / "request.json").read_text()))

    @property
    def state(self) -> State:
        """How the job really stands: one whose process died is interrupted, whatever the file says."""
        found = self.written_state
        if found.status not in LIVE or self.attended:
            return found
        if found.status is Status.QUEUED and time.time() - found.created < _UNATTENDED_SECONDS:
            return found
        last = self.progress
        where = f" at {last.stage}, {last.done} of {last.total}" if last else ""
        return replace(found, status=Status.INTERRUPTED, message=f"The job stopped{where}; start it again to go on.")

    @property
    def written_state(self) -> State:
        found = json.loads((self.folder / "state.json").read_text())
        return State(**{**found, "status": Status(found["status"])})

    @property
    def progress(self) -> Progress | None:
        """The newest step, None before the first."""
        return next(reversed(list(self.steps())), None)

    def steps(self) -> Iterator[Progress]:
        """Every step so far, oldest first."""
        path = self.folder / "progress.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return (step for step in map(_step, lines) if step)

    @property
    def attended(self) -> bool:
        """Whether a living process looks after the job."""
        with (self.folder / "lock").open("a+") as lock:  # NFS gives a shared lock to a reader alone
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @property
    def report(self) -> dict[str, Any] | None:
        """The verification, None where it did not come to one."""
        path = self.folder / "verification.json"
        return json.loads(path.read_text()) if path.exists() else None

    def log(self, lines: int = 50) -> list[str]:
        path = self.folder / "log.txt"
        return path.read_text(errors="replace").splitlines()[-lines:] if path.exists() else []

    def write_state(self, state: State) -> None:
        growing = self.folder / f"state.json.{os.getpid()}"
        growing.write_text(json.dumps(asdict(state)))
        growing.rename(self.folder / "state.json")

    @contextmanager
    def attend(self) -> Iterator[None]:
        """Hold the job's lock. Raises BadRequest if another process does."""
        deadline = time.monotonic() + _LOOK_SECONDS
        with (self.folder / "lock").open("a") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise BadRequest(f"Job {self.id} is running already.") from error
                time.sleep(0.01)
            yield


def _step(line: str) -> Progress | None:
    """None for a line that a full disk or a kill has cut off; the next one may have been joined to it."""
    try:
        return Progress(**json.loads(line))
    except ValueError:
        return None


def create(jobs: Path, request: Request) -> Job:
    """A new job in the queue. Nothing runs before `start`, or `supervisor.run` in this process.

    Raises BadRequest for names that no page and no card could tell.
    """
    try:
        json.dumps(asdict(request), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadRequest("A folder's name is no UTF-8, so neither page nor card can tell it; rename it.") from error
    now = time.time()
    stem = re.sub(r"[^\w.-]+", "-", Path(request.output).name)[:40]
    job = Job(jobs.absolute() / f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{stem}-{secrets.token_hex(2)}")
    job.folder.mkdir(parents=True)
    (job.folder / "request.json").write_text(json.dumps(asdict(request), indent=2))
    job.write_state(State(Status.QUEUED, created=now))
    return job


def find(jobs: Path) -> list[Job]:
    """All jobs, newest first, but for those whose files cannot be read: one must not keep the others waiting."""
    made = (Job(path.parent) for path in jobs.absolute().glob("*/state.json"))
    known = ((created, job.id, job) for job in made if (created := _created(job)) is not None)
    return [job for *_, job in sorted(known, key=lambda found: found[:2], reverse=True)]


def _created(job: Job) -> float | None:
    """None for a job that is just being removed, or that a power cut left without its contents."""
    try:
        _, state = job.request, job.written_state
        return state.created
    except (OSError, ValueError, KeyError, TypeError):
        return None


def ahead(job: Job) -> list[Job]:
    """The living jobs that come before this one, oldest first; its place in the queue is one more than their number."""
    own = job.written_state.created, job.id
    others = [other for other in find(job.folder.parent) if (other.written_state.created, other.id) < own]
    return [other for other in reversed(others) if other.state.status in LIVE]


def require_alone(jobs: Path, request: Request, own: Job | None = None) -> None:
    """Raises BadRequest where a living job makes the same folder: one would remove what the other has half written."""
    if request.task == "verify":
        return
    living = (job for job in find(jobs) if job != own and job.state.status in LIVE)
    if other := next((job for job in living if job.request.output == request.output), None):
        raise BadRequest(f"Job {other.id} already makes {request.output}; name another output folder.")


def queue(job: Job) -> None:
    """Put it at the end of the queue, one that ended early too. Raises BadRequest for one that runs or is done."""
    if job.state.status not in (Status.QUEUED, Status.INTERRUPTED, Status.FAILED, Status.CANCELLED):
        raise BadRequest(f"Job {job.id} is {job.state.status}; only one that is not running or done can be started.")
    require_alone(job.folder.parent, job.request, job)
    job.write_state(State(Status.QUEUED, created=time.time()))


def start(job: Job) -> None:
    """Run the job in a process of its own that outlives this one; also to go on with an interrupted one."""
    queue(job)
    with (job.folder / "log.txt").open("ab") as log:
        subprocess.Popen(  # outlives us on purpose: the folder says how it goes
            [sys.executable, "-m", "quantize", "run", "--queued", "--job", str(job.folder)],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True,
        )  # fmt: skip


def cancel(job: Job, patience: float = 20.0) -> None:
    """End the job and whatever it has half written, within seconds. Raises JobStopped if it does not end."""
    deadline, told = time.monotonic() + patience, 0
    while (state := job.written_state).status in LIVE:
        if time.monotonic() > deadline:
            raise JobStopped(f"Job {job.id} has not ended after {patience:.0f} s; end process {state.pid} by hand.")
        if not job.attended:
            _cancel_unattended(job)
        elif state.pid != told:
            told = state.pid
            with suppress(ProcessLookupError):
                os.kill(told, signal.SIGTERM)
        time.sleep(0.05)


def _cancel_unattended(job: Job) -> None:
    """Under the job's lock, for the process that `start` began may be about to take it up."""
    with suppress(BadRequest), job.attend():
        state = job.written_state
        if state.status in LIVE:
            folder.discard(Path(job.request.output))
            job.write_state(replace(state, status=Status.CANCELLED, message="Cancelled.", ended=time.time()))
