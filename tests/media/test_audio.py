"""Sounds of all makes come out as 16 kHz mono 16-bit WAV of the right length and pitch."""

import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from omni_app.errors import MediaRejected
from omni_app.media import audio
from tests.media import makers


def _pitch(path: Path) -> float:
    samples, rate = audio.read_wav(path)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * rate / len(samples))


def _check(part, seconds: float = 2.0) -> None:
    assert part.kind == "audio"
    with wave.open(str(part.path)) as wav:
        assert (wav.getframerate(), wav.getnchannels(), wav.getsampwidth()) == (16_000, 1, 2)
        assert wav.getnframes() / 16_000 == part.seconds
    assert part.seconds == pytest.approx(seconds, abs=0.15)
    assert _pitch(part.path) == pytest.approx(440, abs=3)


@pytest.mark.anyio
@pytest.mark.parametrize("suffix", [suffix for suffix in makers.SOUNDS if suffix != "amr"])
async def test_each_format_is_read(take, suffix: str) -> None:
    _check(await take(makers.tone(suffix), "wrong.png"))


@pytest.mark.anyio
async def test_vorbis_is_read(take) -> None:
    _check(await take(makers.vorbis()))


@pytest.mark.anyio
async def test_a_phone_memo_is_read(take) -> None:
    _check(await take(makers.tone("amr")))


@pytest.mark.anyio
async def test_the_sound_of_a_browser_recording_is_read_though_no_header_tells_its_length(take) -> None:
    _check(await take(makers.tone("webm", options={"live": "1"})))


@pytest.mark.anyio
@pytest.mark.parametrize("channels", [1, 2, 6, 8])
@pytest.mark.parametrize("rate", [8_000, 44_100, 192_000])
async def test_any_rate_and_number_of_channels(take, channels: int, rate: int) -> None:
    _check(await take(makers.wav(np.tile(makers.sine(2, rate)[:, None], channels), rate)))


@pytest.mark.anyio
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
async def test_any_sample_format(take, subtype: str) -> None:
    _check(await take(makers.wav(makers.sine(2), subtype=subtype)))


@pytest.mark.anyio
async def test_more_channels_than_anyone_has_get_a_word_or_a_sound(take) -> None:
    with pytest.raises(MediaRejected, match=r"9 channels"):
        await take(makers.wav(np.tile(makers.sine(1)[:, None], 9)))


@pytest.mark.anyio
async def test_not_a_number_becomes_silence(take) -> None:
    samples = makers.sine(2)
    samples[8_000:16_000] = np.nan
    samples[20_000] = np.inf
    part = await take(makers.wav(samples, subtype="FLOAT"))
    heard, _ = audio.read_wav(part.path)
    assert not heard[8_200:15_800].any()
    assert 0.2 < np.abs(heard[:7_000]).max() < 0.4


@pytest.mark.anyio
async def test_loud_sound_does_not_wrap_around(take) -> None:
    part = await take(makers.wav(makers.sine(1) * 100, subtype="FLOAT"))
    heard, _ = audio.read_wav(part.path)
    assert np.abs(np.diff(heard)).max() < 2.1
    assert (heard[20:].max(), heard[20:].min()) == (pytest.approx(1, abs=0.01), pytest.approx(-1, abs=0.01))


@pytest.mark.anyio
async def test_a_song_with_a_cover_is_a_sound(take, tmp_path: Path) -> None:
    _check(await take(makers.song_with_cover()))


@pytest.mark.anyio
async def test_the_limit_is_counted_in_samples(take, limits) -> None:
    short = replace(limits, max_audio_seconds=2)
    await take(makers.wav(makers.sine(2.3)), limits=short)
    with pytest.raises(MediaRejected, match=r"lasts more than 2 seconds; sounds may last 2 seconds at most\. Cut"):
        await take(makers.wav(makers.sine(2.7)), limits=short)


def test_a_growing_wav_is_whole_after_every_piece(tmp_path: Path) -> None:
    path = tmp_path / "answer.wav"
    with audio.WavWriter(path, 24_000) as wav:
        for pieces in (1, 2, 3):
            wav.write(b"\x01\x02" * 2_400)
            assert wav.seconds == pytest.approx(pieces / 10)
            with wave.open(str(path)) as so_far:
                assert so_far.getnframes() == pieces * 2_400
                assert len(so_far.readframes(99_999)) == pieces * 4_800
    assert audio.read_wav(path)[1] == 24_000


def test_an_answer_without_sound_is_an_empty_wav(tmp_path: Path) -> None:
    audio.write_wav(tmp_path / "empty.wav", b"", 24_000)
    samples, rate = audio.read_wav(tmp_path / "empty.wav")
    assert (samples.shape, samples.dtype, rate) == ((0,), np.float32, 24_000)


def test_wav_round_trip(tmp_path: Path) -> None:
    samples = makers.sine(0.5)
    audio.write_wav(tmp_path / "tone.wav", (samples * 32767).astype("<i2").tobytes(), 16_000)
    back, rate = audio.read_wav(tmp_path / "tone.wav")
    assert (rate, back.shape) == (16_000, samples.shape)
    assert np.allclose(back, samples, atol=1e-4)


@pytest.mark.anyio
@pytest.mark.parametrize("kept", [44, 46, 60, 1000])
async def test_a_file_that_ends_early_is_told_plainly(take, kept: int) -> None:
    with pytest.raises(MediaRejected, match=r"too short or cut off: it holds less than 0\.1 seconds of sound\. Send"):
        await take(makers.wav(makers.sine(2))[:kept])
