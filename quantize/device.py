"""Where the arithmetic on single layers is done."""

from __future__ import annotations

from functools import cache

_BYTES_PER_WEIGHT = 64
"""Temporaries and copies of what is computed at one time, in FP32 mostly; more than any observer was seen to take."""
_LIBRARIES = 2**31
"""Bytes that CUDA's own libraries and kernels take, with some to spare."""


@cache
def for_weights(count: int) -> str:
    """A CUDA device that has room for so many weights at one time, or else the processor."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    try:
        free, _ = torch.cuda.mem_get_info()
    except RuntimeError:  # another program, such as the server, has filled it to the last byte
        return "cpu"
    kept = torch.cuda.memory_reserved()  # from layers before, free to be used again
    return "cuda" if free + kept > count * _BYTES_PER_WEIGHT + _LIBRARIES else "cpu"
