"""Recorded outputs in, facts out: what `hardware` makes of machines that are not here."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from omni_app import hardware
from omni_app.hardware import GIB, MIB, Sources

H100 = "0, GPU-5d1f7a, NVIDIA H100 80GB HBM3, 81559, 80994, 9.0, 580.95.05\n"
TWO = H100 + "1, GPU-99aa01, NVIDIA H100 80GB HBM3, 81559, 1024, 9.0, 580.95.05\n"
THOR = "0, GPU-1234, NVIDIA Thor, [N/A], [N/A], 11.0, 580.00\n"
SPARK = "0, GPU-77, NVIDIA GB10, [N/A], [N/A], 12.1, 580.95.05\n"
MEMINFO_128 = "MemTotal:       128821120 kB\nMemFree:         8000000 kB\nMemAvailable:   120000000 kB\n"


def answering(text: str, status: int = 0) -> Callable[[Sequence[str]], subprocess.CompletedProcess[str]]:
    return lambda command: subprocess.CompletedProcess(command, status, text, "")


def absent(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    raise FileNotFoundError(command[0])


def hanging(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    raise subprocess.TimeoutExpired(command, 20)


@pytest.fixture
def sources(tmp_path: Path) -> Callable[..., Sources]:
    def make(run: Callable[[Sequence[str]], subprocess.CompletedProcess[str]] = absent, **given: object) -> Sources:
        files = {"proc/meminfo": MEMINFO_128, **given.pop("files", {})}  # type: ignore[dict-item]
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        settings: dict[str, object] = {"environ": {}, "affinity": lambda: 8, "arch": lambda: "x86_64"}
        return Sources(run=run, root=tmp_path, **(settings | given))  # type: ignore[arg-type]

    return make


def test_a_server_with_its_own_gpu_memory(sources: Callable[..., Sources]) -> None:
    machine = hardware.detect(sources=sources(answering(H100)))
    (gpu,) = machine.gpus
    assert gpu.name == "NVIDIA H100 80GB HBM3"
    assert (gpu.memory_total.value, gpu.memory_free.value) == (81559 * MIB, 80994 * MIB)
    assert gpu.compute_capability.value == (9, 0)
    assert not gpu.unified.value
    assert machine.driver.value == "580.95.05"
    assert machine.ram_available.value == 120_000_000 * 1024
    assert not machine.is_jetson.value


@pytest.mark.parametrize(
    ("wanted", "free_mib"),
    [("1,0", [1024, 80994]), ("1", [1024]), ("GPU-99", [1024]), ("", []), ("-1", []), ("0,7,1", [80994])],
)
def test_cuda_visible_devices_chooses_and_orders(
    sources: Callable[..., Sources], wanted: str, free_mib: list[int]
) -> None:
    machine = hardware.detect(sources=sources(answering(TWO), environ={"CUDA_VISIBLE_DEVICES": wanted}))
    assert [gpu.memory_free.value // MIB for gpu in machine.gpus] == free_mib
    assert [gpu.index for gpu in machine.gpus] == [{80994: "0", 1024: "1"}[free] for free in free_mib]
    assert "CUDA_VISIBLE_DEVICES" in machine.gpus_reason


@pytest.mark.parametrize(
    ("smi", "board", "capability", "jetson"),
    [(THOR, "NVIDIA Jetson AGX Thor Developer Kit\0", (11, 0), True), (SPARK, "", (12, 1), False)],
)
def test_unified_memory_comes_from_meminfo(
    sources: Callable[..., Sources], smi: str, board: str, capability: tuple[int, int], jetson: bool
) -> None:
    machine = hardware.detect(sources=sources(answering(smi), files={"proc/device-tree/model": board}))
    (gpu,) = machine.gpus
    assert gpu.unified.value
    assert gpu.memory_total.value == 128_821_120 * 1024
    assert gpu.memory_free.value == 120_000_000 * 1024
    assert "/proc/meminfo" in gpu.memory_free.reason
    assert gpu.compute_capability.value == capability
    assert machine.is_jetson.value is jetson


def test_a_jetson_without_nvidia_smi_is_known_by_its_board(sources: Callable[..., Sources]) -> None:
    files = {"proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0"}
    (gpu,) = hardware.detect(sources=sources(files=files)).gpus
    assert gpu.compute_capability.value == (8, 7)
    assert gpu.unified.value


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (absent, "not installed"),
        (hanging, "did not answer"),
        (answering("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9), "couldn't"),
        (answering(""), "lists no GPU"),
        (answering("garbage\n\x00, b\n"), "lists no GPU"),
    ],
)
def test_no_gpu_says_why(
    sources: Callable[..., Sources],
    run: Callable[[Sequence[str]], subprocess.CompletedProcess[str]],
    reason: str,
) -> None:
    machine = hardware.detect(sources=sources(run))
    assert machine.gpus == ()
    assert reason in machine.gpus_reason


def test_a_container_has_what_its_limits_leave(sources: Callable[..., Sources]) -> None:
    files = {
        "proc/self/cgroup": "0::/outer/inner\n",
        "sys/fs/cgroup/outer/inner/memory.max": "max",
        "sys/fs/cgroup/outer/memory.max": str(16 * GIB),
        "sys/fs/cgroup/outer/memory.current": str(6 * GIB),
        "sys/fs/cgroup/outer/memory.stat": f"anon 1\ninactive_file {2 * GIB}\n",
        "sys/fs/cgroup/outer/cpu.max": "250000 100000",
    }
    machine = hardware.detect(sources=sources(files=files))
    assert machine.ram_total.value == 16 * GIB
    assert machine.ram_available.value == 12 * GIB
    assert machine.cores.value == 3
    assert "container" in machine.cores.reason


def test_control_groups_of_the_first_version(sources: Callable[..., Sources]) -> None:
    files = {
        "proc/self/cgroup": "9:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(8 * GIB),
        "sys/fs/cgroup/memory/memory.usage_in_bytes": str(3 * GIB),
        "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {GIB}\n",
    }
    machine = hardware.detect(sources=sources(files=files))
    assert (machine.ram_total.value, machine.ram_available.value) == (8 * GIB, 6 * GIB)


def test_nothing_readable_is_still_a_machine(tmp_path: Path) -> None:
    def no_disk(folder: Path) -> int:
        raise PermissionError(13, "Permission denied")

    machine = hardware.detect([Path("/models")], Sources(run=absent, root=tmp_path, environ={}, disk_free=no_disk))
    assert machine.ram_total.value == 0
    assert "cannot be read" in machine.ram_total.reason
    assert "Permission denied" in machine.disk_free[Path("/models")].reason


def test_the_disk_of_a_folder_that_does_not_exist_yet(tmp_path: Path, sources: Callable[..., Sources]) -> None:
    asked: list[Path] = []

    def free(folder: Path) -> int:
        asked.append(folder)
        return 5 * GIB

    folder = tmp_path / "not" / "yet"
    machine = hardware.detect([folder], sources(disk_free=free))
    assert machine.disk_free[folder].value == 5 * GIB
    assert asked == [tmp_path]


def test_this_machine() -> None:
    machine = hardware.detect([Path("/")])
    assert machine.cores.value >= 1
    assert 0 < machine.ram_available.value <= machine.ram_total.value
    assert machine.disk_free[Path("/")].value > 0
