"""Looks after one job: waits for its turn, runs the worker in its own interpreter, and cleans up after any end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import FrameType

from quantize import environment, folder
from quantize.errors import JobStopped, QuantizeError
from quantize.job import ROOT, Job, Request, State, Status, ahead
from quantize.progress import Reporter

_TERM_SECONDS = 2.0
_POLL_SECONDS = 0.2
_NICENESS = 10


class _Cancelled(BaseException):
    """SIGTERM or Ctrl-C."""


def run(job: Job, only_queued: bool = False) -> State:
    """Take the job to its end and return how it ended. Raises BadRequest if another process runs it.

    only_queued: leave a job as it is that was cancelled before this process came up.
    """
    with job.attend():
        if only_queued and job.written_state.status is not Status.QUEUED:
            return job.written_state
        state = replace(job.written_state, status=Status.QUEUED, message="", pid=os.getpid())
        job.write_state(state)
        before = {s: signal.signal(s, _raise_cancelled) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            _wait_for_turn(job)
            state = replace(state, status=Status.RUNNING, started=time.time())
            job.write_state(state)
            _work(job)
            state = replace(state, status=Status.DONE, message=_done(job.request))
        except _Cancelled:
            state = replace(state, status=Status.CANCELLED, message="Cancelled; nothing half-written remains.")
        except QuantizeError as error:
            state = replace(state, status=Status.FAILED, message=str(error))
        finally:
            _ignore(before)
            folder.discard(Path(job.request.output))
            state = _ended(state)
            job.write_state(state)
            for number, handler in before.items():
                signal.signal(number, handler)
        return state


def _done(request: Request) -> str:
    if request.task == "verify":
        return f"{request.source} passed every check; nothing in it was changed."
    return f"The model is in {request.output}."


def _ended(state: State) -> State:
    status = Status.FAILED if state.status is Status.RUNNING else state.status
    return replace(state, status=status, ended=time.time(), pid=0)


def _raise_cancelled(number: int, frame: FrameType | None) -> None:
    _ignore((signal.SIGTERM, signal.SIGINT))  # a second one would break into the tidying up
    raise _Cancelled


def _ignore(numbers: Iterable[signal.Signals]) -> None:
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def _wait_for_turn(job: Job) -> None:
    while ahead(job):
        time.sleep(_POLL_SECONDS)


def _work(job: Job) -> None:
    """Raises QuantizeError with what the worker said, or how it died."""
    outcome = job.folder / "outcome.json"
    outcome.unlink(missing_ok=True)
    tell = Reporter(job.folder / "progress.jsonl")
    with (job.folder / "log.txt").open("ab") as log:
        python = environment.ensure(log, tell)
        process = subprocess.Popen(
            [str(python), "-m", "quantize.worker", "run", str(job.folder)],
            cwd=ROOT, env=environment.variables(), stdin=subprocess.PIPE, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            _step_back(process.pid)
            code = process.wait()
        except _Cancelled:
            _end(process)
            raise
    if code == 0:
        return
    raise JobStopped(_told(outcome) or _death(code, job))


def _told(outcome: Path) -> str:
    """Empty where the worker could not say why, for want of room on the disk too."""
    try:
        return str(json.loads(outcome.read_text())["error"])
    except (OSError, ValueError):
        return ""


def _step_back(session: int) -> None:
    """Give way to whatever else runs on these cores, such as the page that shows the job."""
    os.setpriority(os.PRIO_PGRP, session, min(os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS, 19))
    group = Path(f"/proc/{session}/autogroup")  # where sessions share the processor as equals, niceness alone is naught
    with contextlib.suppress(OSError):
        group.write_text(str(_NICENESS))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask, then insist; the worker is a process group of its own."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_TERM_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _death(code: int, job: Job) -> str:
    if code == -signal.SIGKILL:
        return (
            "The worker was killed, most likely because memory ran out; close other programs and start the job again."
        )
    last = next((line for line in reversed(job.log()) if line.strip()), "nothing")
    return f"The worker broke off ({last.strip()[:300]}); log.txt of the job has all of it. Start the job again."
