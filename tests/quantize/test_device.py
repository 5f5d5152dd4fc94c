"""Where layers are computed, with a stand-in for what torch says of a GPU that is not here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from quantize import device, engines

Free = Callable[[], tuple[int, int]]
KEPT = 10**9
"""Bytes that torch has freed and not given back."""
PAIR = 2 * 768 * 2048
"""Weights of two fused layers of an expert."""


def full() -> tuple[int, int]:
    raise RuntimeError("CUDA error: out of memory")


def free(gigabytes: int) -> Free:
    return lambda: (gigabytes * 10**9, 80 * 10**9)


@pytest.fixture
def torch_says(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool, Free], None]:
    def say(available: bool, free: Free) -> None:
        cuda = SimpleNamespace(
            is_available=lambda: available, mem_get_info=free, memory_reserved=lambda: KEPT, memory_allocated=lambda: 0
        )
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
        monkeypatch.setattr(device, "_failures", [])

    return say


@pytest.mark.parametrize(
    ("available", "free", "weights", "expected"),
    [
        (False, full, 1, "cpu"),
        (True, full, 1, "cpu"),
        (True, free(3), 1, "cpu"),
        (True, free(4), PAIR, "cuda"),
        (True, free(4), 29_568 * 8_192, "cpu"),
    ],
)
def test_a_gpu_is_used_where_it_has_room(
    torch_says: Callable[[bool, Free], None], available: bool, free: Free, weights: int, expected: str
) -> None:
    torch_says(available, free)
    assert device.near(weights, lambda where: where) == expected


@pytest.mark.parametrize(
    ("available", "free", "expected"), [(True, free(70), "cuda"), (True, full, "cpu"), (False, full, "cpu")]
)
def test_a_model_goes_where_another_one_was(
    torch_says: Callable[[bool, Free], None], available: bool, free: Free, expected: str
) -> None:
    """64 GB and a tenth are more than are free, but not more than with what the one before it left to torch."""
    torch_says(available, free)
    assert engines._device(64 * 10**9) == expected


def test_a_gpu_that_fails_is_left_alone(
    torch_says: Callable[[bool, Free], None], caplog: pytest.LogCaptureFixture
) -> None:
    torch_says(True, free(60))
    tried: list[str] = []

    def compute(where: str) -> str:
        tried.append(where)
        if where == "cuda":
            raise RuntimeError("Failed to find C compiler.")
        return where

    assert [device.near(PAIR, compute) for _ in range(2)] == ["cpu", "cpu"]
    assert tried == ["cuda", "cpu", "cpu"]
    assert "RuntimeError: Failed to find C compiler." in caplog.text


def test_what_is_wrong_everywhere_is_raised(torch_says: Callable[[bool, Free], None]) -> None:
    torch_says(True, free(60))
    with pytest.raises(ZeroDivisionError):
        device.near(PAIR, lambda where: 1 // 0)
