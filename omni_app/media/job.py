"""One file on its way in: opened without risk, named for the visitor, watched by a clock."""

from __future__ import annotations

import io
import math
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from omni_app.errors import MediaRejected
from omni_app.media.limits import Deadline, Limits


class WatchedFile(io.BufferedReader):
    """A file that ends when the deadline has passed, so that decoders written in C stop too.

    It does not raise: FFmpeg's callbacks cannot carry an exception. `intake` looks at the deadline after any failure.
    """

    def __init__(self, raw: io.FileIO | io.BytesIO, deadline: Deadline) -> None:
        super().__init__(raw, buffer_size=64 * 1024)
        self._deadline = deadline

    def read(self, size: int | None = -1, /) -> bytes:
        return b"" if self._deadline.passed else super().read(size)


@dataclass(frozen=True, slots=True)
class Job:
    """What the readers of pictures, sounds and clips work on."""

    file: WatchedFile
    name: str
    """The visitor's name for the file, safe to show."""
    folder: Path
    limits: Limits
    deadline: Deadline
    token: str = field(default_factory=lambda: secrets.token_hex(16))

    def target(self, suffix: str) -> Path:
        """Where the normalised file goes: a name nobody can guess and no visitor chose."""
        return self.folder / (self.token + suffix)

    def rejected(self, why: str) -> MediaRejected:
        return reject(self.name, why)


def reject(name: str, why: str) -> MediaRejected:
    return MediaRejected(f"“{name}” {why}")


def open_source(source: Path | bytes, name: str, limits: Limits, deadline: Deadline) -> WatchedFile:
    """Open bytes or a plain file for reading. Raises MediaRejected for links, folders, pipes, devices, empty files
    and files over the limit; never waits (a pipe without a writer would)."""
    raw = io.BytesIO(source) if isinstance(source, bytes) else _open_plain(source, name)
    size = raw.seek(0, io.SEEK_END)
    if size == 0 or size > limits.max_bytes:
        raw.close()
        raise reject(name, "is empty. Choose another file.") if size == 0 else too_large(name, size, limits)
    raw.seek(0)
    return WatchedFile(raw, deadline)


def too_large(name: str, size: int, limits: Limits) -> MediaRejected:
    return reject(
        name,
        f"has {math.ceil(size / 1e5) / 10:,} MB; files may have at most {limits.max_upload_mb} MB. "
        "Send a shorter or smaller one.",
    )


def _open_plain(path: Path, name: str) -> io.FileIO:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise reject(name, "is not there any more. Choose it again.") from error
    except (OSError, ValueError) as error:  # a link, no permission, a zero byte in the path, a name too long
        raise reject(name, "cannot be opened as a plain file. Send the file itself, not a link to it.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise reject(name, "is a folder or a device, not a file. Choose a picture, a sound or a clip.")
    return io.FileIO(descriptor)
