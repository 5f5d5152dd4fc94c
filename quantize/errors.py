"""What can go wrong, in one sentence for the user with the way out. `str(error)` is always fit to be shown."""

from __future__ import annotations


class QuantizeError(Exception):
    """Base of every error that we raise on purpose."""


class ModelUnusable(QuantizeError):
    """The source is no model folder, is not whole, is already quantized, or is of an unknown architecture."""


class BadRequest(QuantizeError):
    """A scheme, part or option that does not exist or does not go with the others."""


class DoesNotFit(QuantizeError):
    """Not enough disk, RAM or GPU memory. The message has the sum."""


class CalibrationUnusable(QuantizeError):
    """Too few calibration samples could be read."""


class ListenerFailed(QuantizeError):
    """The program that should have written down speech could not; the speech is saved, its words are not compared."""


class VerificationFailed(QuantizeError):
    """The result is not what it must be; the report says where. Nothing was published under the output's name."""


class JobStopped(QuantizeError):
    """The work was ended from outside: cancelled, killed, or the disk ran full."""
