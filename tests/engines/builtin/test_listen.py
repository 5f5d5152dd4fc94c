from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from omni_app.engines.builtin.listen import SAMPLE_RATE, Listener, Sound, levels_dbfs, read_wav, segments
from omni_app.errors import MediaRejected

RANDOM = np.random.default_rng(7)
SECONDS = np.arange(5 * SAMPLE_RATE) / SAMPLE_RATE


def noise(level: float, seconds: float = 5.0) -> Sound:
    return RANDOM.normal(0, level, int(seconds * SAMPLE_RATE)).astype(np.float32)


def write_wav(path: Path, sound: Sound, rate: int = SAMPLE_RATE, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
    return path


def test_wav_is_read_at_full_scale_one(tmp_path: Path) -> None:
    sound = read_wav(write_wav(tmp_path / "a.wav", np.array([0.0, 0.5, -1.0], np.float32)))
    assert sound.dtype == np.float32
    assert sound == pytest.approx([0.0, 0.5, -1.0], abs=1e-4)


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16_000, 2)])
def test_other_wav_is_rejected(tmp_path: Path, rate: int, channels: int) -> None:
    with pytest.raises(MediaRejected, match="not 16 kHz mono"):
        read_wav(write_wav(tmp_path / "a.wav", noise(0.1, 0.1), rate, channels))


@pytest.mark.parametrize("content", [b"", b"RIFF", b"no sound at all, but some bytes"])
def test_what_is_no_wav_is_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(MediaRejected, match="cannot be read"):
        read_wav(path)


def test_levels() -> None:
    assert levels_dbfs(np.zeros(0, np.float32)).tolist() == pytest.approx([-120.0])
    assert levels_dbfs(np.ones(320, np.float32)).tolist() == pytest.approx([0.0], abs=1e-6)


def test_segments_lose_nothing_and_stay_short() -> None:
    sound = noise(0.1, 31.7)
    pieces = list(segments(sound))
    assert np.array_equal(np.concatenate(pieces), sound)
    assert all(len(piece) <= 6 * SAMPLE_RATE for piece in pieces)
    assert all(len(piece) >= 3 * SAMPLE_RATE for piece in pieces[:-1])


def test_segments_are_cut_in_the_pause() -> None:
    sound = noise(0.1, 12)
    sound[int(4.5 * SAMPLE_RATE) : int(5.0 * SAMPLE_RATE)] = 0
    first = next(iter(segments(sound)))
    assert 4.5 <= len(first) / SAMPLE_RATE <= 5.0


def test_nothing_has_no_segments() -> None:
    assert list(segments(np.zeros(0, np.float32))) == []


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


@pytest.mark.models
@pytest.mark.parametrize(
    "sound",
    [
        np.zeros(5 * SAMPLE_RATE, np.float32),
        np.zeros(100, np.float32),
        np.zeros(0, np.float32),
        noise(0.001),
        noise(0.05),
        noise(0.3),
        (0.3 * np.sin(2 * np.pi * 440 * SECONDS)).astype(np.float32),
        (0.1 * np.sin(2 * np.pi * 50 * SECONDS)).astype(np.float32) + noise(0.01),
        (RANDOM.random(len(SECONDS)) < 0.0005).astype(np.float32),
    ],
    ids=["silence", "a moment", "nothing", "hiss", "noise", "loud noise", "tone", "hum", "clicks"],
)
def test_no_words_are_invented(listener: Listener, tmp_path: Path, sound: Sound) -> None:
    assert listener.transcribe(write_wav(tmp_path / "a.wav", sound)) == ""


@pytest.mark.models
def test_cancelled_between_segments(listener: Listener, tmp_path: Path) -> None:
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > 1

    listener.transcribe(write_wav(tmp_path / "a.wav", noise(0.01, 60)), cancelled)
    assert len(asked) == 2
