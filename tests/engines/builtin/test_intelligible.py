"""Speech is judged by listening to it: what was spoken must be transcribed back almost word for word."""

from __future__ import annotations

import re
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from omni_app.engines.builtin.listen import SAMPLE_RATE as HEARING_RATE
from omni_app.engines.builtin.listen import Listener
from omni_app.engines.builtin.speak import KOKORO_NAMES, Speaker
from omni_app.engines.builtin.waveform import SAMPLE_RATE, Samples, resample
from omni_app.settings import Settings
from quantize.speech import word_errors

pytestmark = pytest.mark.models

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Paris is the capital of France, and it lies on the river Seine.",
    "Please open the window, because it is very warm in here.",
    "A cup of tea and a good book make a quiet evening.",
    "The train to the city leaves every morning at seven.",
    "She bought apples, bread and milk at the market.",
    "Water boils at one hundred degrees.",
    "I would like to learn how to play the piano.",
    "Our garden is full of flowers in the spring.",
    "Thank you for listening, and have a wonderful day.",
)


def words(text: str) -> list[str]:
    text = re.sub(r"\b100\b", "one hundred", re.sub(r"\b7\b", "seven", text.lower()))
    return re.findall(r"[a-z0-9']+", text)


def write_wav(path: Path, samples: Samples) -> Path:
    """24 kHz speech as the 16 kHz WAV that is listened to."""
    resampled = resample(samples, SAMPLE_RATE, HEARING_RATE)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(HEARING_RATE)
        file.writeframes(resampled.tobytes())
    return path


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture(scope="module")
def speaker() -> Iterator[Speaker]:
    speaker = Speaker(Settings(builtin_speech="kokoro"))
    speaker.load()
    yield speaker
    speaker.close()


def error_rate(speaker: Speaker, listener: Listener, voice: str, folder: Path) -> float:
    errors = total = 0
    for sentence in SENTENCES:
        utterance = speaker.utterance(voice, lambda: False)
        utterance.feed(sentence)
        utterance.finish()
        pcm = b"".join(delta.pcm for delta in utterance.audio())
        heard = listener.transcribe(write_wav(folder / "said.wav", np.frombuffer(pcm, np.int16)))
        said = words(sentence)
        errors += word_errors(said, words(heard))
        total += len(said)
        print(f"{voice}: {sentence} -> {heard}")
    print(f"{voice}: word error rate {errors / total:.1%}")
    return errors / total


def test_kokoro_is_understood(speaker: Speaker, listener: Listener, tmp_path: Path) -> None:
    assert error_rate(speaker, listener, KOKORO_NAMES[0], tmp_path) < 0.15


def test_espeak_is_understood(speaker: Speaker, listener: Listener, tmp_path: Path) -> None:
    # A small recogniser that never heard a formant synthesiser gets a sixth to a third of its words wrong.
    assert error_rate(speaker, listener, "espeak-en-us", tmp_path) < 0.40
