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
    ("available", "free", "weights", "expected"),
    [
        (False, full, 1, "cpu"),
        (True, full, 1, "cpu"),
        (True, lambda: (10**9, 80 * 10**9), 1, "cpu"),
        (True, lambda: (5 * 10**9, 80 * 10**9), 2 * 768 * 2048, "cuda"),
        (True, lambda: (5 * 10**9, 80 * 10**9), 29_568 * 8_192, "cpu"),
    ],
)
def test_a_gpu_is_used_where_it_has_room(
    monkeypatch: pytest.MonkeyPatch, available: bool, free: Callable[[], tuple[int, int]], weights: int, expected: str
) -> None:
    cuda = SimpleNamespace(is_available=lambda: available, mem_get_info=free, memory_reserved=lambda: 0)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    device.for_weights.cache_clear()
    assert device.for_weights(weights) == expected
    device.for_weights.cache_clear()
