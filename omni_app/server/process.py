"""The server's processes: started as a session of their own, found again, and ended to the last one.

Read from /proc, where a process is named by its number and its start in clock ticks: unlike a date, that does not move
when the clock is set, as it is on boards without a battery.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from omni_app.errors import EngineUnavailable

MARK = "OMNI_SERVER_MARK"
"""Environment variable that all processes of one start inherit."""
_PROC = Path("/proc")


class ProcessId(BaseModel):
    """A process that cannot be taken for another: its number is used again, its start is not."""

    model_config = ConfigDict(frozen=True)

    pid: int
    started_ticks: int
    boot: str
    mark: str = ""


@dataclass(frozen=True, slots=True)
class _Stat:
    pid: int
    state: str
    parent: int
    session: int
    started_ticks: int


def start(argv: Sequence[str], env: Mapping[str, str], log: Path) -> tuple[subprocess.Popen[bytes], ProcessId]:
    """Start a program as the leader of a session of its own, its output appended to `log`. Raises EngineUnavailable."""
    if sys.platform != "linux":
        raise EngineUnavailable("The server can only be started on Linux. Start it there and set OMNI_ENDPOINT here.")
    mark = secrets.token_hex(16)
    try:
        with log.open("ab") as output:
            child = subprocess.Popen(
                argv, env={**env, MARK: mark}, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
    except OSError as error:
        raise EngineUnavailable(f"{argv[0]} cannot be started: {error.strerror}.") from error
    return child, identify(child.pid, mark)


def identify(pid: int, mark: str = "") -> ProcessId:
    stat = _stat(pid)
    return ProcessId(pid=pid, started_ticks=stat.started_ticks if stat else 0, boot=_boot(), mark=mark)


def is_running(process: ProcessId) -> bool:
    """Whether that very process still runs; False also when another one has got its number."""
    stat = _stat(process.pid)
    return stat is not None and stat.started_ticks == process.started_ticks and process.boot == _boot()


def members(leader: ProcessId) -> list[int]:
    """Every process of that start that still runs: the leader's session, and what left it but bears the mark."""
    if leader.boot != _boot():
        return []
    stats = [stat for stat in _all() if stat.started_ticks >= leader.started_ticks]
    # No process gets the number of a session that has members left, so a stranger there means that ours is over.
    over = any(stat.pid == leader.pid and stat.started_ticks != leader.started_ticks for stat in stats)
    of_session = set() if over else {stat.pid for stat in stats if stat.session == leader.pid}
    marked = {stat.pid for stat in stats if leader.mark and _mark(stat.pid) == leader.mark}
    family = of_session | marked
    return sorted(family | {stat.pid for stat in stats if stat.parent in family})


def parent(pid: int) -> int:
    """Number of the process that started this one; 0 when it is gone."""
    stat = _stat(pid)
    return stat.parent if stat else 0


def send(process: ProcessId, number: signal.Signals) -> bool:
    """Signal that very process; False, and nothing is touched, when it is gone or its number is another's now."""
    if not is_running(process):
        return False
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    except PermissionError as error:
        raise EngineUnavailable(f"Process {process.pid} belongs to another user; ask them to stop it.") from error
    return True


async def end(leader: ProcessId, grace_s: float) -> None:
    """End every process of that start: asked first, killed after `grace_s` seconds. Raises EngineUnavailable when
    one is left all the same, such as one that hangs in the GPU's driver."""
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
        deadline = time.monotonic() + wait_s
        signalled: set[int] = set()
        while left := members(leader):
            for pid in set(left) - signalled:
                _signal(pid, number)
            signalled |= set(left)
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.05)
        else:
            return
    raise EngineUnavailable(f"These processes of the server could not be ended: {', '.join(map(str, left))}.")


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it ended by itself in the meantime


def _all() -> Iterator[_Stat]:
    for entry in _PROC.iterdir() if _PROC.is_dir() else ():
        if entry.name.isdecimal() and (stat := _stat(int(entry.name))):
            yield stat


def _stat(pid: int) -> _Stat | None:
    """None when it does not run; one that has ended but was not collected yet does not run."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The name stands in parentheses and may hold any character, so the fields are counted from its end.
    state, parent, _, session, *rest = text.rpartition(")")[2].split()
    if state in "ZX":
        return None
    return _Stat(pid, state, int(parent), int(session), int(rest[15]))


def _mark(pid: int) -> str:
    try:
        variables = (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return ""  # another user's, or gone
    prefix = f"{MARK}=".encode()
    return next((one[len(prefix) :].decode() for one in variables if one.startswith(prefix)), "")


def _boot() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
