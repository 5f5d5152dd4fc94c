"""Where layers are computed, with a stand-in for what torch says of a GPU that is not here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from quantize import device


def full() -> tuple[int, int]:
    raise RuntimeError("CUDA error: out of memory")


@pytest.mark.parametrize(
    ("available", "free", "expected"),
    [
        (False, full, "cpu"),
        (True, full, "cpu"),
        (True, lambda: (10**9, 80 * 10**9), "cpu"),
        (True, lambda: (5 * 10**9, 80 * 10**9), "cuda"),
    ],
)
def test_a_gpu_is_used_where_it_has_room(
    monkeypatch: pytest.MonkeyPatch, available: bool, free: Callable[[], tuple[int, int]], expected: str
) -> None:
    cuda = SimpleNamespace(is_available=lambda: available, mem_get_info=free)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    device.for_layers.cache_clear()
    assert device.for_layers() == expected
    device.for_layers.cache_clear()
