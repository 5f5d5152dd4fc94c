"""The one way in for files: bytes or a path become a checked, bounded, normalised Part, or MediaRejected."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from omni_app.conversation import Part
from omni_app.errors import MediaRejected, unkept
from omni_app.media import image, sniff
from omni_app.media.job import Job, open_source, reject, too_large
from omni_app.media.limits import Deadline, Limits, Overdue
from omni_app.media.names import display_name

WORK_SECONDS = 30.0
"""Longest time one file may take to read, once its turn has come."""
_workers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="media")
"""Files read at one time; bounds cores and memory."""


async def ingest(source: Path | bytes, *, name: str, into: Path, limits: Limits) -> Part:
    """Check a file and keep a normalised copy in the folder `into`, under a name that we choose.

    A picture becomes a JPEG of at most 2048 px without metadata, a sound 16 kHz mono 16-bit WAV, a clip keeps its
    container. The kind is told from the content; `name` is only shown. Raises MediaRejected, in words for the
    visitor, and leaves nothing behind; OmniError when the copy cannot be written. Cancelling stops the work.
    """
    return await _in_worker(partial(_ingest, source, display_name(name), into, limits))


async def ingest_data_url(url: str, *, into: Path, limits: Limits, name: str = "attachment") -> Part:
    """The same for `data:<mime>;base64,...`. Any other address is refused: we never fetch."""
    return await _in_worker(partial(_ingest_url, url, display_name(name), into, limits))


async def _in_worker(work: Callable[[Deadline], Part]) -> Part:
    deadline = Deadline(WORK_SECONDS)
    try:
        return await asyncio.wrap_future(_workers.submit(work, deadline))
    finally:
        # after a normal end this changes nothing; after a cancellation it stops the thread that nobody waits for
        deadline.cancel()


def _ingest_url(url: str, name: str, into: Path, limits: Limits, deadline: Deadline) -> Part:
    return _ingest(_decode_data_url(url, name, limits), name, into, limits, deadline)


def _decode_data_url(url: str, name: str, limits: Limits) -> bytes:
    scheme = re.match(r"\s*([a-z][a-z0-9+.-]*):", url[:64], re.IGNORECASE)
    if scheme is None or scheme.group(1).lower() != "data":
        raise MediaRejected("Only data URLs are taken: we never fetch addresses. Send the file itself.")
    header, comma, payload = url.partition(",")
    if not comma or not header.rstrip().lower().endswith(";base64"):
        raise reject(name, "is not a base64 data URL. Send it as data:<type>;base64,<content>.")
    if len(payload) * 3 // 4 > limits.max_bytes + 2:
        raise too_large(name, len(payload) * 3 // 4, limits)
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise reject(name, "is not valid base64. Encode the file again and send it whole.") from error


def _ingest(source: Path | bytes, name: str, into: Path, limits: Limits, deadline: Deadline) -> Part:
    deadline.restart()
    with contextlib.closing(open_source(source, name, limits, deadline)) as file:
        job = Job(file, name, into, limits, deadline)
        try:
            into.mkdir(parents=True, exist_ok=True)
            part = _normalise(job)
            deadline.check()
        except BaseException as error:
            # whatever it is, nothing may stay behind
            for leftover in into.glob(f"{job.token}*"):
                leftover.unlink()
            _explain(error, job)
            raise
    return part


def _normalise(job: Job) -> Part:
    head = job.file.read(sniff.HEAD_BYTES)
    job.file.seek(0)
    found = sniff.sniff(head)
    if found is None:
        claimed = sniff.claim(job.name)
        but = f"is named like {claimed} but holds" if claimed else "holds"
        raise job.rejected(f"{but} {sniff.describe(head)}. {sniff.WAY_OUT}")
    if found.family == "picture":
        return image.normalise(job, found)
    from omni_app.media import video  # loads FFmpeg, which a start without media does not need

    return video.normalise(job, found)


def _explain(error: BaseException, job: Job) -> None:
    """Raise what the visitor should read in place of a technical error; do nothing when it is readable already."""
    if isinstance(error, Overdue) or job.deadline.passed:
        raise job.rejected(
            f"takes longer than {job.deadline.seconds:.0f} seconds to read. Send a shorter or smaller one."
        ) from error
    if isinstance(error, OSError):
        raise unkept(f"“{job.name}”", error) from error
    if isinstance(error, MemoryError):
        raise job.rejected("needs more memory than there is. Send a smaller one.") from error
