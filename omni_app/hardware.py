"""What machine this is: GPUs, memory, processor cores, disk. Every value comes with its reason; nothing here raises."""

from __future__ import annotations

import csv
import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

MIB = 2**20
GIB = 2**30

_QUERY = ("index", "uuid", "name", "memory.total", "memory.free", "compute_cap", "driver_version")
_SMI = ("nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits")
_SMI_SECONDS = 20
# What NVML leaves out on boards whose GPU and processor share one memory.
_BOARDS = {"Thor": (11, 0), "Orin": (8, 7), "Xavier": (7, 2)}
_SHARED_MEMORY = re.compile(r"\b(GB10|Thor|Orin|Xavier|Tegra)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Fact(Generic[T]):
    """A value, and one short sentence on where it comes from or why it is not known."""

    value: T
    reason: str


@dataclass(frozen=True, slots=True)
class Gpu:
    """One CUDA device, in the order in which a program that we start would count them."""

    name: str
    memory_total: Fact[int]
    """Bytes; on a unified-memory machine the whole machine's."""
    memory_free: Fact[int]
    """Bytes that a new program could take now."""
    compute_capability: Fact[tuple[int, int] | None]
    unified: Fact[bool]
    """Whether the GPU has no memory of its own but shares the processor's."""
    index: str = ""
    """Its number in the list of nvidia-smi; empty where that does not list it."""


@dataclass(frozen=True, slots=True)
class Machine:
    gpus: tuple[Gpu, ...]
    gpus_reason: str
    driver: Fact[str]
    cores: Fact[int]
    ram_total: Fact[int]
    ram_available: Fact[int]
    arch: Fact[str]
    board: Fact[str]
    is_jetson: Fact[bool]
    disk_free: Mapping[Path, Fact[int]] = field(default_factory=dict)
    """Bytes free for each folder that was asked about."""


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=False)


def _disk_free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Sources:
    """Where facts are read; tests put recorded outputs here."""

    run: Callable[[Sequence[str]], subprocess.CompletedProcess[str]] = _run
    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    affinity: Callable[[], int] = _affinity
    disk_free: Callable[[Path], int] = _disk_free
    arch: Callable[[], str] = platform.machine

    def read(self, path: str) -> str:
        """The text of a file below the root, without the NULs of a device tree; empty when it cannot be read."""
        try:
            return (self.root / path).read_text(errors="replace").replace("\0", "").strip()
        except OSError:
            return ""


def detect(folders: Iterable[Path] = (), sources: Sources | None = None) -> Machine:
    """Look at this machine, and at the disks that hold `folders` (which need not exist yet)."""
    sources = sources or Sources()
    total, available = memory(sources)
    board = _board(sources)
    is_jetson = _is_jetson(sources, board)
    gpus, gpus_reason, driver = _gpus(sources, total, available, board, is_jetson.value)
    return Machine(
        gpus, gpus_reason, driver, _cores(sources), total, available,
        Fact(sources.arch(), "as the system names it"), board, is_jetson,
        {folder: _disk(sources, folder) for folder in folders},
    )  # fmt: skip


# --- processor and memory


def _meminfo(sources: Sources) -> dict[str, int]:
    """Bytes by name, of /proc/meminfo."""
    lines = re.findall(r"^(\w+):\s+(\d+) kB", sources.read("proc/meminfo"), re.MULTILINE)
    return {name: int(kilobytes) * 1024 for name, kilobytes in lines}


def memory(sources: Sources) -> tuple[Fact[int], Fact[int]]:
    """Memory of the machine, or of the container where that is less: all of it, and what is available now."""
    info = _meminfo(sources)
    if "MemTotal" not in info:
        unknown = Fact(0, "/proc/meminfo cannot be read")
        return unknown, unknown
    total = Fact(info["MemTotal"], "MemTotal of /proc/meminfo")
    available = Fact(info.get("MemAvailable", info.get("MemFree", 0)), "MemAvailable of /proc/meminfo")
    for folder in _cgroups(sources, "memory"):
        limit, used = _memory_limit(sources, folder)
        if limit is not None and limit < total.value:
            total = Fact(limit, f"the memory limit of this container (/{folder})")
        if limit is not None and limit - used < available.value:
            available = Fact(max(limit - used, 0), f"what the memory limit of this container leaves (/{folder})")
    return total, available


def _memory_limit(sources: Sources, folder: str) -> tuple[int | None, int]:
    """Limit and use of one control group in bytes; cached file contents are not counted as used."""
    limit = _number(sources.read(f"{folder}/memory.max") or sources.read(f"{folder}/memory.limit_in_bytes"))
    used = _number(sources.read(f"{folder}/memory.current") or sources.read(f"{folder}/memory.usage_in_bytes"))
    cached = re.search(r"^(?:total_)?inactive_file (\d+)", sources.read(f"{folder}/memory.stat"), re.MULTILINE)
    return limit, max((used or 0) - int(cached[1] if cached else 0), 0)


def _cgroups(sources: Sources, controller: str) -> Iterator[str]:
    """The control groups that this process is in, of both versions, innermost first."""
    for line in sources.read("proc/self/cgroup").splitlines() or ["0::/"]:
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy != "0" and controller not in controllers.split(","):
            continue
        base = "sys/fs/cgroup" if hierarchy == "0" else f"sys/fs/cgroup/{controller}"
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            yield "/".join([base, *parts[:depth]])


def _cores(sources: Sources) -> Fact[int]:
    cores = Fact(sources.affinity(), "processors that this process may use")
    for folder in _cgroups(sources, "cpu"):
        quota, _, period = sources.read(f"{folder}/cpu.max").partition(" ")
        limit = int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else math.inf
        if limit < cores.value:
            cores = Fact(max(math.ceil(limit), 1), f"the processor limit of this container (/{folder})")
    return cores


def _disk(sources: Sources, folder: Path) -> Fact[int]:
    place = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
    try:
        return Fact(sources.disk_free(place), f"the disk of {place}")
    except OSError as error:
        return Fact(0, f"{place} cannot be asked ({error.strerror or error})")


def _board(sources: Sources) -> Fact[str]:
    for path in ("proc/device-tree/model", "sys/firmware/devicetree/base/model", "sys/class/dmi/id/product_name"):
        if name := sources.read(path):
            return Fact(name, f"/{path}")
    return Fact("", "the system does not name its board")


def _is_jetson(sources: Sources, board: Fact[str]) -> Fact[bool]:
    if "jetson" in board.value.lower():
        return Fact(True, f"{board.reason} says {board.value}")
    if release := sources.read("etc/nv_tegra_release"):
        return Fact(True, f"/etc/nv_tegra_release says {release.splitlines()[0]}")
    return Fact(False, "neither the board's name nor /etc/nv_tegra_release says Jetson")


# --- GPUs


def _gpus(
    sources: Sources, total: Fact[int], available: Fact[int], board: Fact[str], is_jetson: bool
) -> tuple[tuple[Gpu, ...], str, Fact[str]]:
    rows, problem = _ask_nvidia_smi(sources)
    if not rows and is_jetson:
        capability = next((value for name, value in _BOARDS.items() if name in board.value), None)
        gpu = Gpu(
            board.value or "Jetson", _shared(total), _shared(available),
            Fact(capability, f"known for {board.value}" if capability else "this board is not known"),
            Fact(True, "a Jetson's GPU shares the processor's memory"),
        )  # fmt: skip
        return (gpu,), f"the board is a Jetson ({problem})", Fact("", problem)
    seen, reason = _visible(rows, sources.environ.get("CUDA_VISIBLE_DEVICES"))
    if not rows:
        return (), problem, Fact("", problem)
    gpus = tuple(_gpu(row, total, available, is_jetson) for row in seen)
    return gpus, reason, Fact(rows[0]["driver_version"], "nvidia-smi")


def _ask_nvidia_smi(sources: Sources) -> tuple[list[dict[str, str]], str]:
    """One row per GPU, or none and the reason."""
    try:
        done = sources.run(_SMI)
    except FileNotFoundError:
        return [], "nvidia-smi is not installed, so no NVIDIA driver is either"
    except (OSError, subprocess.SubprocessError) as error:
        return [], f"nvidia-smi did not answer ({error})"
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        return [], f"nvidia-smi failed: {said[0] if said else f'status {done.returncode}'}"
    rows = [row for row in csv.reader(done.stdout.splitlines(), skipinitialspace=True) if len(row) == len(_QUERY)]
    return [dict(zip(_QUERY, row, strict=True)) for row in rows], "nvidia-smi lists no GPU"


def _visible(rows: list[dict[str, str]], wanted: str | None) -> tuple[list[dict[str, str]], str]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, in its order. As CUDA does, stop at the first that does not exist."""
    if wanted is None:
        return rows, "nvidia-smi"
    seen: list[dict[str, str]] = []
    for name in (part.strip() for part in wanted.split(",")):
        match = next((row for row in rows if _named(row, name)), None)
        if match is None:
            break
        seen.append(match)
    said = "leaves these" if seen else "leaves none"
    return seen, f"CUDA_VISIBLE_DEVICES={wanted} {said} of {len(rows)} that nvidia-smi lists"


def _named(row: Mapping[str, str], name: str) -> bool:
    return name == row["index"] or (name.startswith("GPU-") and row["uuid"].startswith(name))


def _gpu(row: Mapping[str, str], total: Fact[int], available: Fact[int], is_jetson: bool) -> Gpu:
    own_total, own_free = _number(row["memory.total"]), _number(row["memory.free"])
    unified = _unified(row["name"], own_total, is_jetson)
    if unified.value or own_total is None:
        memory = _shared(total), _shared(available)
    else:
        memory = Fact(own_total * MIB, "nvidia-smi"), Fact((own_free or 0) * MIB, "nvidia-smi")
    return Gpu(row["name"], *memory, _capability(row), unified, row["index"])


def _unified(name: str, own_total: int | None, is_jetson: bool) -> Fact[bool]:
    if is_jetson or _SHARED_MEMORY.search(name):
        return Fact(True, f"{name} shares the processor's memory")
    if own_total is None:
        return Fact(True, "nvidia-smi names no memory of its own")
    return Fact(False, "nvidia-smi names its own memory")


def _capability(row: Mapping[str, str]) -> Fact[tuple[int, int] | None]:
    if found := re.fullmatch(r"(\d+)\.(\d+)", row["compute_cap"]):
        return Fact((int(found[1]), int(found[2])), "nvidia-smi")
    for name, value in _BOARDS.items():
        if name in row["name"]:
            return Fact(value, f"known for {name}")
    return Fact(None, f"nvidia-smi says {row['compute_cap']}")


def _shared(memory: Fact[int]) -> Fact[int]:
    return Fact(memory.value, f"{memory.reason}: GPU and processor share one memory")


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None
