"""Speech to text: Moonshine tiny-en, whose model comes with its package. English only."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omni_app.engines.builtin.assets import MOONSHINE, packaged
from omni_app.engines.builtin.pacing import Cancelled
from omni_app.errors import AssetUnavailable, EngineFailed, MediaRejected

SAMPLE_RATE = 16_000
"""Hz, of what is listened to."""

# One segment is the longest stretch of work that a cancelled reply still waits for.
_SEGMENT_SECONDS = (3.0, 6.0)
_FRAME_SECONDS = 0.02
_PAUSE_FRAMES = 10
_SILENT_DBFS = -50.0
_FAINT_DB = 30.0

Sound = NDArray[np.float32]


class Listener:
    """One loaded model; used by one thread at a time. Loading takes about half a second and 150 MB.

    Raises AssetUnavailable.
    """

    def __init__(self) -> None:
        from moonshine_voice import ModelArch, Transcriber
        from moonshine_voice.errors import MoonshineError

        folder = packaged(MOONSHINE)
        options = {"return_audio_data": "false", "identify_speakers": "false"}
        try:
            self._transcriber = Transcriber(folder, ModelArch.TINY, options=options)
        except (MoonshineError, OSError) as error:
            raise AssetUnavailable(
                f"The listening model cannot be loaded ({error}); run "
                f"`pip install --force-reinstall --no-deps {MOONSHINE.package}`."
            ) from error

    def transcribe(self, wav: Path, cancelled: Cancelled = lambda: False) -> str:
        """What is said in a 16 kHz mono 16-bit WAV; empty for silence and noise, cut short when cancelled.

        Blocks for about a tenth of the sound's length. Raises MediaRejected, EngineFailed.
        """
        texts = []
        for segment in segments(read_wav(wav)):
            if cancelled():
                break
            texts += self._lines(segment)
        return " ".join(texts)

    def close(self) -> None:
        self._transcriber.close()

    def _lines(self, sound: Sound) -> list[str]:
        from moonshine_voice.errors import MoonshineError

        levels = levels_dbfs(sound)
        if levels.max() < _SILENT_DBFS:
            return []  # the model hears "You" in silence
        try:
            transcript = self._transcriber.transcribe_without_streaming(sound.tolist(), SAMPLE_RATE)
        except MoonshineError as error:
            raise EngineFailed("The listening model failed on this sound; please say it again.") from error
        return [
            text
            for line in transcript.lines
            if (text := line.text.strip()) and _audible(levels, line.start_time, line.duration)
        ]


def _audible(levels: NDArray[np.float64], start: float, seconds: float) -> bool:
    """Whether the stretch is loud enough to have been said; words found in faint noise are the model's own."""
    first = int(start / _FRAME_SECONDS)
    loudest = levels[first : first + max(1, int(seconds / _FRAME_SECONDS))].max(initial=-120.0)
    return bool(loudest >= max(_SILENT_DBFS, levels.max() - _FAINT_DB))


def read_wav(path: Path) -> Sound:
    """Samples of a 16 kHz mono 16-bit WAV, full scale 1. Raises MediaRejected."""
    try:
        with wave.open(str(path)) as file:
            form = (file.getframerate(), file.getnchannels(), file.getsampwidth())
            data = file.readframes(file.getnframes())
    except (OSError, wave.Error, EOFError) as error:
        raise MediaRejected("The sound cannot be read; please record it again.") from error
    if form != (SAMPLE_RATE, 1, 2):
        raise MediaRejected("The sound is not 16 kHz mono 16-bit WAV; please send it again.")
    return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)


def levels_dbfs(sound: Sound) -> NDArray[np.float64]:
    """Loudness of each 20 ms, in dB below full scale (-120 for none); at least one."""
    frame = int(_FRAME_SECONDS * SAMPLE_RATE)
    padded = np.pad(sound.astype(np.float64), (0, -len(sound) % frame if len(sound) else frame))
    power = (padded.reshape(-1, frame) ** 2).mean(axis=1)
    return np.asarray(10 * np.log10(power + 1e-12))


def segments(sound: Sound) -> Iterator[Sound]:
    """`sound` in pieces of at most six seconds, cut in the quietest fifth of a second that can be found."""
    shortest, longest = (int(seconds * SAMPLE_RATE) for seconds in _SEGMENT_SECONDS)
    while len(sound) > longest:
        cut = shortest + _quietest(sound[shortest:longest])
        yield sound[:cut]
        sound = sound[cut:]
    if len(sound):
        yield sound


def _quietest(sound: Sound) -> int:
    """Index of the middle of the quietest fifth of a second."""
    levels = np.convolve(levels_dbfs(sound), np.ones(_PAUSE_FRAMES), mode="valid")
    return int((int(levels.argmin()) + _PAUSE_FRAMES / 2) * _FRAME_SECONDS * SAMPLE_RATE)
