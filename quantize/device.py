"""Where the arithmetic on single layers is done."""

from __future__ import annotations

from functools import cache

_ROOM = 2**31
"""Bytes that must be free on a GPU: some tens of MB for a layer, and its own libraries."""


@cache
def for_layers() -> str:
    """A CUDA device with room for one layer at a time, or else the processor."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    try:
        free, _ = torch.cuda.mem_get_info()
    except RuntimeError:  # another program, such as the server, has filled it to the last byte
        return "cpu"
    return "cuda" if free > _ROOM else "cpu"
