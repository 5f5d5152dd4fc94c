"""Sounds: any of them becomes 16 kHz mono 16-bit WAV; and WAV files read and written for the rest of the app."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from omni_app.conversation import Part
from omni_app.errors import MediaRejected
from omni_app.media.job import Job
from omni_app.media.limits import in_words
from omni_app.media.sniff import Format

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.resampler import AudioResampler
    from av.audio.stream import AudioStream
    from av.container import InputContainer

    from omni_app.media.container import Tally

RATE = 16_000
"""Samples per second of every normalised sound, what speech models listen to."""
MIN_SECONDS = 0.1
_SLACK_SECONDS = 0.5
"""How far over the limit a sound may be: encoders pad."""
_RATES = range(1_000, 768_001)
_MAX_CHANNELS = 8
"""Beyond that FFmpeg knows no layout to mix from."""


class WavWriter:
    """A mono 16-bit WAV file that grows. Its header is right after every `write`, so a crash loses nothing said.

    Use as a context manager. Raises OSError when the disk is full.
    """

    def __init__(self, path: Path, rate: int) -> None:
        self.path = path
        self.rate = rate
        self.samples = 0
        self._wave = wave.open(str(path), "wb")  # noqa: SIM115
        self._wave.setnchannels(1)
        self._wave.setsampwidth(2)
        self._wave.setframerate(rate)
        self._wave.writeframes(b"")

    @property
    def seconds(self) -> float:
        return self.samples / self.rate

    def write(self, pcm: bytes) -> None:
        """Append signed 16-bit little-endian mono samples."""
        self._wave.writeframes(pcm)
        self.samples += len(pcm) // 2

    def close(self) -> None:
        self._wave.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_wav(path: Path, pcm: bytes, rate: int) -> None:
    """Write signed 16-bit little-endian mono samples at `rate` Hz as a WAV file."""
    with WavWriter(path, rate) as wav:
        wav.write(pcm)


def read_wav(path: Path) -> tuple[NDArray[np.float32], int]:
    """Samples of a WAV file, shape (samples,), mono, -1 to 1; and their rate in Hz."""
    import soundfile

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return samples.mean(axis=1, dtype=np.float32), int(rate)


def normalise(job: Job, found: Format, container: InputContainer) -> Part:
    """The sound of an opened file as 16 kHz mono WAV. Raises MediaRejected."""
    from omni_app.media.container import Tally, declared_seconds, sound_stream

    stream = sound_stream(container)
    if stream is None:
        raise job.rejected(f"is {found.words} with neither sound nor moving picture. Choose another.")
    check_sound(job, stream)
    declared = declared_seconds(container)
    limit = job.limits.max_audio_seconds
    # up to twice the limit the header may be a wrong guess (MP3 without an index), so the samples are counted
    if declared and declared > 2 * limit:
        raise _too_long(job, in_words(declared))
    tally = Tally()
    target = job.target(".wav")
    with WavWriter(target, RATE) as wav:
        for pcm in decode(container, stream, tally):
            job.deadline.check()
            wav.write(pcm)
            if wav.seconds > limit + _SLACK_SECONDS:
                raise _too_long(job, f"more than {in_words(limit)}")
    _check_result(job, found, tally, wav.seconds, declared)
    note = tally.note(wav.seconds, declared)
    return Part("audio", path=target, name=job.name, mime="audio/wav", seconds=wav.seconds, has_sound=True, note=note)


def check_sound(job: Job, stream: AudioStream) -> None:
    """Raises MediaRejected for a stream that we would not decode."""
    from omni_app.media.container import readable

    if not readable(stream) or not stream.channels:
        raise job.rejected("is damaged or uses a sound format that is not read here. Save it as WAV or MP3.")
    if stream.codec_tag == "enca":
        raise job.rejected("is protected against copying (DRM). Send an unprotected copy.")
    if stream.channels > _MAX_CHANNELS:
        raise job.rejected(f"has {stream.channels} channels; at most {_MAX_CHANNELS} are mixed. Save it as stereo.")
    if stream.rate not in _RATES:
        raise job.rejected(f"has {stream.rate} samples a second, which no real sound has. Save it as WAV or MP3.")


def _too_long(job: Job, length: str) -> MediaRejected:
    limit = in_words(job.limits.max_audio_seconds)
    return job.rejected(f"lasts {length}; sounds may last {limit} at most. Cut it into pieces.")


def _check_result(job: Job, found: Format, tally: Tally, seconds: float, declared: float | None) -> None:
    if tally.encrypted:
        raise job.rejected("is protected against copying (DRM). Send an unprotected copy.")
    if tally.mostly_bad:
        raise job.rejected(f"is damaged: most of this {found.words.split(' ', 1)[1]} cannot be decoded. Save it again.")
    if seconds < MIN_SECONDS:
        raise job.rejected(
            f"is too short or cut off: it holds less than {MIN_SECONDS} seconds of sound. "
            "Send the whole file or record it again."
        )
    if declared and seconds < declared / 2:
        raise job.rejected(
            f"is cut off: only {seconds:.1f} of {declared:.1f} seconds are there. Send the whole file again."
        )


def decode(container: InputContainer, stream: AudioStream, tally: Tally) -> Iterator[bytes]:
    """Pieces of 16 kHz mono signed 16-bit PCM. Pieces that cannot be decoded are left out and counted in `tally`."""
    from av import FFmpegError

    from omni_app.media.container import packets

    mixer = _Mixer()
    for packet in packets(container, stream):
        tally.encrypted = tally.encrypted or packet.has_sidedata("encryption_info")
        try:
            pieces = [mixer.mix(frame) for frame in stream.codec_context.decode(packet)]
        except FFmpegError:
            tally.bad += 1
            continue
        tally.good += bool(pieces)
        yield from pieces
    yield mixer.flush()


class _Mixer:
    """Any frames to 16 kHz mono 16-bit. Starts anew when the format changes in the middle of a stream."""

    def __init__(self) -> None:
        self._resampler: AudioResampler | None = None
        self._format: tuple[str, str, int] | None = None

    def mix(self, frame: AudioFrame) -> bytes:
        from av.audio.resampler import AudioResampler

        frame.pts = None  # samples are put end to end: gaps and jumps in hostile timestamps must not become silence
        before = b""
        this_format = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._resampler is None or this_format != self._format:
            before = self.flush()
            self._resampler = AudioResampler(format="flt", layout="mono", rate=RATE)
            self._format = this_format
        return before + b"".join(_to_pcm(out) for out in self._resampler.resample(frame))

    def flush(self) -> bytes:
        if self._resampler is None:
            return b""
        resampler, self._resampler = self._resampler, None
        return b"".join(_to_pcm(out) for out in resampler.resample(None))


def _to_pcm(frame: AudioFrame) -> bytes:
    samples = np.nan_to_num(frame.to_ndarray().reshape(-1), nan=0.0, posinf=0.0, neginf=0.0)
    return (samples.clip(-1.0, 1.0) * 32767).astype("<i2").tobytes()
