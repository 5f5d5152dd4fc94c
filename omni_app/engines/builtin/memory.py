"""How much memory the C library keeps for itself: next to nothing, where it can be told so (glibc)."""

from __future__ import annotations

import ctypes
import platform
from functools import cache

# Names and values of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_LARGE_BYTES = 1 << 20
_HEAPS = 2


def return_large_blocks() -> None:
    """Make every freed tensor go back to the system at once, for the whole process.

    By itself glibc raises its threshold to the largest block it has seen, up to 32 MB, and keeps a heap per thread:
    a model whose inputs differ in size then holds twice what it uses (measured with the text reader: 180 instead of
    440 MB after four pictures, for 20 to 40 % more processor time).
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_ARENA_MAX, _HEAPS)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)


def return_free_pages() -> None:
    """Give what is free inside the heaps back to the system; takes a few milliseconds."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
