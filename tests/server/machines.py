"""Machines that the profile is made for, as `hardware.detect` describes them."""

from __future__ import annotations

from omni_app.hardware import GIB, Fact, Gpu, Machine


def gpu(
    name: str, total_gib: float, capability: tuple[int, int] | None, unified: bool = False, taken: float = 0.5
) -> Gpu:
    """A GPU of which `taken` GiB are in use."""
    total, free = int(total_gib * GIB), int((total_gib - taken) * GIB)
    return Gpu(name, Fact(total, "made"), Fact(free, "made"), Fact(capability, "made"), Fact(unified, "made"))


def machine(*gpus: Gpu, ram_gib: float = 128) -> Machine:
    ram = int(ram_gib * GIB)
    return Machine(
        gpus, "made", Fact("580.95.05", "made"), Fact(16, "made"), Fact(ram, "made"), Fact(ram, "made"),
        Fact("x86_64", "made"), Fact("", "made"), Fact(False, "made"),
    )  # fmt: skip


H100 = gpu("NVIDIA H100 80GB HBM3", 79.18, (9, 0))
L40S = gpu("NVIDIA L40S", 44.39, (8, 9))
MACHINES: dict[str, Machine] = {
    "h100": machine(H100),
    "h200": machine(gpu("NVIDIA H200", 139.8, (9, 0))),
    "2x80": machine(H100, H100),
    "thor": machine(gpu("NVIDIA Thor", 122.8, (11, 0), unified=True, taken=5)),
    "spark": machine(gpu("NVIDIA GB10", 119.7, (12, 1), unified=True, taken=5)),
    "48": machine(L40S),
    "2x48": machine(L40S, L40S),
    "32": machine(gpu("NVIDIA GeForce RTX 5090", 31.84, (12, 0))),
    "24": machine(gpu("NVIDIA GeForce RTX 4090", 23.99, (8, 9))),
}
