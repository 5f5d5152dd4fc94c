"""Programs of ours at the left of a pipe: where `head` has had enough they end without a word, as other tools do."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

UNREAD = 1
"""Exit status once nobody reads what is printed; Python's documentation advises this one."""


def until_unread(main: Callable[[], int]) -> int:
    """The exit status of `main`."""
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain as it ends
        return UNREAD
