"""Which of several GPUs a job works on: the one with the most free memory; another may be full.

llm-compressor's own runs take the first GPU that they see, and looking at a GPU by CUDA takes memory there. So the
driver is asked, and all other GPUs are hidden before CUDA is used.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

_VISIBLE, _ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
_ASK = ["nvidia-smi", "--query-gpu=index,uuid,memory.free,name", "--format=csv,noheader,nounits"]
_ANSWER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Gpu:
    index: int
    """In the driver's order."""
    uuid: str
    free: int
    """MiB."""
    name: str


def take_emptiest() -> None:
    """Hide all GPUs but that with the most free memory from this process, and say which it is."""
    seen = visible(_installed(), os.environ)
    if len(seen) < 2:
        return
    taken = max(seen, key=lambda gpu: gpu.free)
    os.environ[_VISIBLE] = taken.uuid
    print(
        f"GPU {taken.index} ({taken.name}) is used: of {len(seen)} it has the most free memory, "
        f"{taken.free * 2**20 / 1e9:.1f} GB.",
        file=sys.stderr, flush=True,
    )  # fmt: skip


def visible(installed: list[Gpu], environ: Mapping[str, str]) -> list[Gpu]:
    """Those that CUDA would see; none where that cannot be told, as of parts of a GPU."""
    if _VISIBLE not in environ:
        return installed
    # CUDA's own numbers put the fastest first, the driver's follow the bus; of equal GPUs both are the same.
    numbered = environ.get(_ORDER) == "PCI_BUS_ID" or len({gpu.name for gpu in installed}) == 1
    named = [name.strip() for name in environ[_VISIBLE].split(",")]
    found = [[gpu for gpu in installed if _is(gpu, name, numbered)] for name in named]
    return [gpus[0] for gpus in found] if all(len(gpus) == 1 for gpus in found) else []


def _is(gpu: Gpu, name: str, numbered: bool) -> bool:
    return (numbered and name == str(gpu.index)) or (name.startswith("GPU-") and gpu.uuid.startswith(name))


def _installed() -> list[Gpu]:
    """All GPUs, none where the driver does not tell how much of each is free."""
    try:
        said = subprocess.run(
            _ASK, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False
        )
        return [_gpu(*line.split(",", 3)) for line in said.stdout.splitlines()]
    except (OSError, subprocess.TimeoutExpired, ValueError, TypeError):
        return []


def _gpu(index: str, uuid: str, free: str, name: str) -> Gpu:
    return Gpu(int(index), uuid.strip(), int(free), name.strip())
