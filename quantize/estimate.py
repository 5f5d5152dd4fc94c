"""What a run will take and give, before anything starts: from config.json and safetensors headers alone."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantize import served
from quantize.errors import DoesNotFit
from quantize.plan import Plan
from quantize.served import Served

GB = 1e9
WORKER_RAM = 0.7e9
"""Bytes that the worker's interpreter with torch and llm-compressor holds before it reads anything (measured)."""
_WORKSPACE_BYTES_PER_WEIGHT = {"rtn": 24, "mse": 40}
"""Temporaries while one fused group is quantized, in FP32 mostly."""
_DISK_MARGIN = 0.02
_VERIFY_MILLION_WEIGHTS_PER_SECOND = 25.0
_GPU_MILLION_WEIGHTS_PER_SECOND = 390.0
_GPU_VERIFY_MILLION_WEIGHTS_PER_SECOND = 480.0
"""Seen with NVFP4A16 on one H100, the files in memory: Python is the limit, not the GPU."""
_DISK_BYTES_PER_SECOND = 1e9
"""An NVMe disk's. Quantizing and verifying each read the source; the result is written and read."""
_COPY_BYTES_PER_SECOND = 300e6
_SECONDS_PER_SAMPLE_AND_BILLION = 2.0
"""Capturing one short spoken answer, per billion parameters that are active; a CPU's figure, a GPU is far quicker."""
_SLOWER = {"rtn": 1.0, "mse": 40.0, "gptq": 60.0, "gptq-mse": 90.0, "awq": 80.0}
"""Times the round-to-nearest time; ratios seen on SmolLM2-135M."""


@dataclass(frozen=True, slots=True)
class PartEstimate:
    name: str
    label: str
    parameters: int
    bytes_now: int
    bytes_after: int
    quantized: bool
    choosable: bool
    why: str


@dataclass(frozen=True, slots=True)
class Machine:
    """What the job's machine has free. Bytes, and cores."""

    disk: int
    ram: int
    cores: int
    gpu: bool = False
    """Whether NVIDIA's driver is installed."""


@dataclass(frozen=True, slots=True)
class Download:
    """What fetching a model from a hub takes."""

    bytes: int
    """Of the files that the hub's cache on this disk does not have yet."""
    disk: int
    """Free bytes where that cache lies."""
    beside_output: bool
    """Whether the result goes to the same disk."""


NO_DOWNLOAD = Download(0, 0, False)
"""The model is a folder here."""


@dataclass(frozen=True, slots=True)
class Estimate:
    architecture: str
    scheme: str
    parameters: int
    bytes_now: int
    bytes_after: int
    disk_bytes: int
    """Needed beside the source while the job runs."""
    download_bytes: int
    """To be fetched from a hub first; 0 for a folder here."""
    ram_bytes: int
    gpu_bytes: int
    """Only what capturing on a GPU would take; the schemes themselves take 1 GB there, or else run on the CPU."""
    seconds: float
    parts: tuple[PartEstimate, ...]
    left: Mapping[str, str]
    """Layers whose sizes the scheme cannot divide, and why; they stay BF16."""
    refusals: tuple[str, ...]
    """Why it does not fit here, each with the sum; empty: it fits."""
    served: Served | None
    """The result as Serve's profile reads a model; None for a text model, which that does not serve."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def machine(output: Path) -> Machine:
    """This machine, with the disk that holds `output`."""
    gpu = shutil.which("nvidia-smi") is not None
    return Machine(shutil.disk_usage(existing(output)).free, _available_ram(), os.cpu_count() or 1, gpu)


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(parent for parent in [path, *path.absolute().parents] if parent.exists())


def _available_ram(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that a new process can take: the kernel's own estimate, within the limit of the control group."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    limit = group / "memory.max"
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - _used(group))
    return free


def _used(group: Path) -> int:
    """Bytes without the cached contents of files, of which a model's download alone fills any container."""
    fields = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int((group / "memory.current").read_text()) - int(fields["inactive_file"])


def estimate(plan: Plan, here: Machine, download: Download = NO_DOWNLOAD) -> Estimate:
    parts = tuple(_parts(plan))
    after = sum(part.bytes_after for part in parts)
    ram, gpu = _memory(plan, parts)
    disk = math.ceil(after * (1 + _DISK_MARGIN))
    return Estimate(
        architecture=plan.source.architecture,
        scheme=plan.scheme.name,
        parameters=sum(part.parameters for part in parts),
        bytes_now=plan.source.size,
        bytes_after=after,
        disk_bytes=disk,
        download_bytes=download.bytes,
        ram_bytes=ram,
        gpu_bytes=gpu,
        seconds=_seconds(plan, after, here),
        parts=parts,
        left=plan.left,
        refusals=(*_no_room(here, disk, download), *_no_memory(plan, here, ram)),
        served=served.predict(plan),
    )


def require(found: Estimate) -> None:
    """Raises DoesNotFit with the arithmetic."""
    if found.refusals:
        raise DoesNotFit(" ".join(found.refusals))


def _parts(plan: Plan) -> list[PartEstimate]:
    quantized = plan.quantized
    parameters: Counter[str] = Counter()
    now: Counter[str] = Counter()
    after: Counter[str] = Counter()
    for name, tensor in plan.source.tensors.items():
        part = plan.owners[name].name
        parameters[part] += tensor.count
        now[part] += tensor.size
        after[part] += plan.scheme.bytes_of(tensor.shape) if name in quantized else tensor.size
    return [
        PartEstimate(d.part.name, d.part.label, parameters[d.part.name], now[d.part.name], after[d.part.name],
                     d.quantized, d.part.choosable, d.why)
        for d in plan.decisions
    ]  # fmt: skip


def _memory(plan: Plan, parts: tuple[PartEstimate, ...]) -> tuple[int, int]:
    """Peak RAM, and GPU memory if the capture runs there. Bytes."""
    shard = plan.source.largest_shard
    largest = max(sum(tensor.count for tensor in group) for group in plan.groups.values())
    shrink = sum(part.bytes_after for part in parts) / plan.source.size
    stream = WORKER_RAM + shard * (1 + shrink) + largest * _WORKSPACE_BYTES_PER_WEIGHT.get(plan.recipe.algorithm, 40)
    if not plan.recipe.needs_data:
        return math.ceil(stream), 0
    whole = plan.source.size * 1.05 + WORKER_RAM
    return math.ceil(max(stream, whole * (1.1 if plan.recipe.needs_model else 1))), math.ceil(plan.source.size * 1.1)


def _seconds(plan: Plan, after: int, here: Machine) -> float:
    weights = sum(tensor.count for group in plan.groups.values() for tensor in group) / 1e6
    speed = min(here.cores, 16) / 2
    quantize = weights / plan.scheme.million_weights_per_second / speed * _SLOWER[plan.recipe.algorithm]
    seconds = quantize + weights / _VERIFY_MILLION_WEIGHTS_PER_SECOND / speed + after / _COPY_BYTES_PER_SECOND
    if here.gpu and plan.recipe.algorithm == "rtn":
        seconds = weights / _GPU_MILLION_WEIGHTS_PER_SECOND + weights / _GPU_VERIFY_MILLION_WEIGHTS_PER_SECOND
        seconds = max(seconds, 2 * (plan.source.size + after) / _DISK_BYTES_PER_SECOND)
    if plan.recipe.needs_data:
        seconds += plan.recipe.samples * _SECONDS_PER_SAMPLE_AND_BILLION * plan.source.size / 2e9 / speed
    return seconds


def _no_room(here: Machine, disk: int, download: Download) -> Iterator[str]:
    together = download.bytes if download.beside_output else 0
    if disk + together > here.disk:
        fetched = f" and its source another {together / GB:.1f} GB" if together else ""
        yield (
            f"The result takes {disk / GB:.1f} GB of disk{fetched} and {here.disk / GB:.1f} GB are free; "
            f"free {(disk + together - here.disk) / GB:.1f} GB or name an output folder on another disk."
        )
    elif download.bytes > download.disk:
        yield (
            f"Fetching the model takes {download.bytes / GB:.1f} GB and {download.disk / GB:.1f} GB are free where the "
            "hub's cache lies; name another disk's folder in HF_HUB_CACHE."
        )


def _no_memory(plan: Plan, here: Machine, ram: int) -> Iterator[str]:
    if ram <= here.ram:
        return
    way = (
        "choose NVFP4A16 or FP8_DYNAMIC, which read one file at a time"
        if plan.recipe.needs_data
        else "use a machine with more memory, or a copy of the model in smaller files"
    )
    yield f"The run takes {ram / GB:.1f} GB of RAM and {here.ram / GB:.1f} GB are available; {way}."
