"""Small operations on speech: signed 16-bit mono samples, one-dimensional arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.int16]

SAMPLE_RATE = 24_000
"""Hz, of all speech that the builtin engine makes."""

_QUIET = 200  # of 32767, about -44 dBFS: below the softest consonant of either voice
_KEPT_SECONDS = 0.03
_FADE_SECONDS = 0.005


def trim(samples: Samples) -> Samples:
    """Without the silence before and after the words, and with ends that do not click. Empty if all is silence."""
    loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > _QUIET)
    if not len(loud):
        return samples[:0]
    kept = int(_KEPT_SECONDS * SAMPLE_RATE)
    return _fade(samples[max(0, loud[0] - kept) : loud[-1] + kept + 1])


def _fade(samples: Samples) -> Samples:
    length = min(int(_FADE_SECONDS * SAMPLE_RATE), len(samples) // 2)
    ramp = np.linspace(0.0, 1.0, length)
    faded = samples.astype(np.float64)
    faded[:length] *= ramp
    faded[len(faded) - length :] *= ramp[::-1]
    return faded.astype(np.int16)


def silence(seconds: float) -> Samples:
    return np.zeros(int(seconds * SAMPLE_RATE), np.int16)


def from_float(samples: NDArray[np.float32]) -> Samples:
    """From floats where full scale is 1."""
    return (np.clip(samples, -1.0, 1.0) * 32767).astype(np.int16)


def resample(samples: Samples, source_rate: int, rate: int = SAMPLE_RATE) -> Samples:
    """From `source_rate` Hz to `rate` Hz."""
    import av

    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
    frame.sample_rate = source_rate
    resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
    frames = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames]).astype(np.int16)
