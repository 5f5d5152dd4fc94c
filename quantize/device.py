"""Where the arithmetic on single layers is done: on a GPU that has room and works, or else on the processor."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")
_BYTES_PER_WEIGHT = 64
"""Temporaries and copies of what is computed at one time, in FP32 mostly."""
_SPARE = 4 * 2**30
"""Bytes left to CUDA's own libraries (1 GiB) and to a server beside us, which grows by 1.4 GiB under load."""
_failures: list[str] = []
"""Of the GPU, in words: an exception would keep the layers at hand. After the first it is left alone."""


def near(weights: int, compute: Callable[[str], T]) -> T:
    """What `compute` makes of so many weights on the device that it is told; on the processor where a GPU fails.

    Raises what `compute` raises on the processor.
    """
    if _has_room(weights):
        try:
            return compute("cuda")
        except Exception as error:
            # No compiler for Triton, a GPU too old for torch, memory gone meanwhile: all of them end here.
            log.exception("The GPU failed, the processor goes on alone.")
            _failures.append(repr(error))
    return compute("cpu")


def _has_room(weights: int) -> bool:
    return not _failures and free() > weights * _BYTES_PER_WEIGHT + _SPARE


def free() -> int:
    """Bytes that this process could have on the GPU, 0 without one: torch keeps what was freed, such as a model."""
    import torch

    if not torch.cuda.is_available():
        return 0
    try:
        found, _ = torch.cuda.mem_get_info()
    except RuntimeError as error:
        # Another program, such as the server, has filled it to the last byte.
        log.warning("The GPU is left alone: %s", error)
        _failures.append(repr(error))
        return 0
    return int(found + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
