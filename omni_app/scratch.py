"""Private temporary folders that do not outlive their process, not even one that was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "omni-app-"
_LEAST_AGE_SECONDS = 60
"""A younger folder may belong to a process that has not locked it yet."""


class Scratch:
    """A folder only for this user, locked for as long as the process lives: the system drops the lock with it, and
    unlike a process id a lock is never given to somebody else."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Once only."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is removed at the end."""
    made = Scratch()
    try:
        yield made.path
    finally:
        made.remove()


def sweep() -> None:
    """Remove the folders that dead processes of this user left behind; never one of a living process."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Another process may sweep at the same time, and another user's folders are none of our business.
        with suppress(OSError):
            _remove_if_left(folder)


def _remove_if_left(folder: Path) -> None:
    seen = folder.lstat()
    if seen.st_uid != os.getuid() or time.time() - seen.st_mtime < _LEAST_AGE_SECONDS:
        return
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(lock)
