"""How hard the machine works now, read from files: boards such as the Jetson have no NVML that would tell it all.

Sources: /proc/meminfo, the kernel's devfreq (clocks in Hz, load of Orin's GPU in per mille) and thermal zones
(thousandths of a degree Celsius). Thor's GPU is `gpu-gpc-0` and has no load file; jetson-stats tells its load, where
somebody has installed that.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omni_app import hardware
from omni_app.hardware import GIB, Sources

_GPU = re.compile(r"gpu-gpc-\d+|.*\.(gpu|ga10b|gv11b|gp10b)")
_MEMORY_BUS = "bwmgr"
_JETSON_STATS = "jtop"


@dataclass(frozen=True, slots=True)
class Reading:
    name: str
    value: str
    source: str


def read(sources: Sources | None = None) -> list[Reading]:
    """What can be told here, without anything made up; takes up to a second where jetson-stats is asked."""
    sources = sources or Sources()
    nodes = sorted((sources.root / "sys/class/devfreq").glob("*"))
    gpus = [node for node in nodes if _GPU.fullmatch(node.name)]
    buses = [node for node in nodes if node.name == _MEMORY_BUS]
    return [
        *_memory(sources),
        *(one for node in gpus for one in _clock("GPU clock", node, sources)),
        *_load(gpus, sources),
        *(one for node in buses for one in _clock("memory clock", node, sources)),
        *_hottest(sources),
    ]


def _memory(sources: Sources) -> Iterator[Reading]:
    total, available = hardware.memory(sources)
    if total.value:
        used = (total.value - available.value) / GIB
        yield Reading("memory", f"{used:.1f} of {total.value / GIB:.1f} GiB used", total.reason)


def _clock(name: str, node: Path, sources: Sources) -> Iterator[Reading]:
    now, most = _number(node / "cur_freq", sources), _number(node / "max_freq", sources)
    if now is not None:
        limit = f" of {most / 1e6:.0f}" if most else ""
        yield Reading(name, f"{now / 1e6:.0f}{limit} MHz", f"devfreq {node.name}")


def _load(gpus: list[Path], sources: Sources) -> Iterator[Reading]:
    for node in gpus:
        if (load := _number(node / "device/load", sources)) is not None:
            yield Reading("GPU load", f"{load / 10:.0f} %", f"devfreq {node.name}")
            return
    if gpus and (told := _jetson_stats()) is not None:
        yield Reading("GPU load", f"{told:.0f} %", "jetson-stats")


def _jetson_stats() -> float | None:
    """Per cent; None where jetson-stats is not installed, its service does not run, or it does not know."""
    if importlib.util.find_spec(_JETSON_STATS) is None:
        return None
    module = importlib.import_module(_JETSON_STATS)
    try:
        with module.jtop() as board:
            loads = [gpu.get("status", {}).get("load") for gpu in board.gpu.values()]
    except module.JtopException:
        return None
    return max((float(load) for load in loads if load is not None), default=None)


def _hottest(sources: Sources) -> Iterator[Reading]:
    zones = {}
    for zone in (sources.root / "sys/class/thermal").glob("thermal_zone*"):
        if (temperature := _number(zone / "temp", sources)) is not None:
            zones[zone] = temperature
    if zones:
        hottest = max(zones, key=lambda zone: zones[zone])
        yield Reading("hottest sensor", f"{zones[hottest] / 1000:.0f} °C", _text(hottest / "type", sources))


def _number(file: Path, sources: Sources) -> int | None:
    text = _text(file, sources)
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _text(file: Path, sources: Sources) -> str:
    return sources.read(str(file.relative_to(sources.root)))
