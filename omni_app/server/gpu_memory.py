"""GPU memory that each stage of a running server holds, by asking nvidia-smi; empty where nobody can tell."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Mapping

from omni_app.server import process
from omni_app.server.state import ServerState

QUERY = ("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")
ANSWER_S = 10.0


def by_stage(state: ServerState) -> dict[str, float]:
    """GiB by the stage's name, on all its GPUs, and what else of the server holds some as `other`.

    A stage on several GPUs holds it in workers that its process has started. Empty without a GPU, and in a container
    that sees other process numbers than the driver does.
    """
    used = _by_process()
    if not (state.server and used):
        return {}
    names = {stage.pid: stage.name for stage in state.stages if stage.pid}
    held: dict[str, float] = {}
    for pid in process.members(state.server):
        if pid in used:
            name = names.get(pid) or names.get(process.parent(pid), "other")
            held[name] = held.get(name, 0.0) + used[pid]
    return held


def _by_process() -> Mapping[int, float]:
    try:
        said = subprocess.run(QUERY, capture_output=True, text=True, timeout=ANSWER_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = (row for row in csv.reader(said.splitlines(), skipinitialspace=True) if len(row) == 2)
    used: dict[int, float] = {}
    for pid, mib in rows:  # one row for each GPU that a process is on
        if pid.isdecimal() and mib.strip().isdecimal():
            used[int(pid)] = used.get(int(pid), 0.0) + float(mib) / 1024
    return used
