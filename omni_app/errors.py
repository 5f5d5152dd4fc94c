"""What can go wrong, in words for the person in front of the page. `str(error)` is always fit to be shown."""

from __future__ import annotations

import errno

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says of a full disk, a used-up quota and a limit on the size of files."""


class OmniError(Exception):
    """Base of every error that we raise on purpose. The message names the limit and the way out."""

    status = 500
    """The HTTP status the API answers with."""
    kind = "server_error"
    """The `type` of an OpenAI-style error body."""


class BadRequest(OmniError):
    """The request itself cannot be served: an unknown voice, an empty message, a text over the limit."""

    status = 400
    kind = "invalid_request_error"


class MediaRejected(BadRequest):
    """A file that we will not pass on: damaged, too large, too long, or not what it says it is."""


class DiskFull(OmniError):
    """A file that cannot be kept because there is no room for it. Nothing of it is left behind."""

    status = 507


class EngineUnavailable(OmniError):
    """No engine can answer now: not started, could not be reached, or it died."""

    status = 503
    kind = "engine_unavailable"


class EngineAtCapacity(OmniError):
    """The engine answers as many visitors as it can; trying again later helps."""

    status = 429
    kind = "rate_limit_error"


class EngineFailed(OmniError):
    """The engine broke in the middle of an answer. What was said so far stays valid."""

    status = 500
    kind = "engine_error"


class AssetUnavailable(EngineUnavailable):
    """A model file is missing and could not be fetched."""


class CheckpointUnusable(EngineUnavailable):
    """A model folder that cannot be served: the wrong one, not whole, or with a part quantized that must not be."""


class DoesNotFit(EngineUnavailable):
    """A model that this machine cannot hold. The message has the sum."""


def unkept(what: str, error: OSError) -> OmniError:
    """What to say of something that the disk did not take."""
    if error.errno in _NO_ROOM:
        return DiskFull(
            f"{what} could not be kept: the disk of this server is full. Free some disk space there and send it again; "
            "questions without files are answered all the same."
        )
    return OmniError(
        f"{what} could not be kept on this server ({error.strerror or 'write error'}). "
        "See that its data folder can be written to, and send it again."
    )
