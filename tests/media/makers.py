"""Good media for the tests, made on the spot: colour fields and sine tones."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any, Literal

import av
import numpy as np
import soundfile
from PIL import Image

SOUNDS = {
    "mp3": ("mp3", "libmp3lame"),
    "m4a": ("ipod", "aac"),
    "aac": ("adts", "aac"),
    "flac": ("flac", "flac"),
    "opus": ("ogg", "libopus"),
    "webm": ("webm", "libopus"),
    "mka": ("matroska", "libopus"),
    "aiff": ("aiff", "pcm_s16be"),
    "amr": ("amr", "libopencore_amrnb"),
}
"""Suffix: the muxer and the encoder that make it."""
CLIPS = {
    "mp4": ("mp4", "libx264", "aac"),
    "mov": ("mov", "mpeg4", "aac"),
    "webm": ("webm", "libvpx-vp9", "libopus"),
    "mkv": ("matroska", "libx264", "aac"),
    "av1.webm": ("webm", "libsvtav1", "libopus"),
    "vp8.webm": ("webm", "libvpx", "libopus"),
    "hevc.mp4": ("mp4", "libx265", "aac"),
}


def field(width: int = 64, height: int = 48, mode: str = "RGB", color: Any = (200, 30, 30)) -> Image.Image:
    return Image.new(mode, (width, height), color)


def noise(width: int = 200, height: int = 150) -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def picture(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def sine(seconds: float, rate: int = 16_000, hertz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def wav(samples: np.ndarray, rate: int = 16_000, subtype: str = "PCM_16") -> bytes:
    """Samples of shape (n,) or (n, channels)."""
    return _with_libsndfile(samples, rate, "WAV", subtype)


def vorbis(seconds: float = 2.0) -> bytes:
    return _with_libsndfile(sine(seconds), 16_000, "OGG", "VORBIS")


def _with_libsndfile(samples: np.ndarray, rate: int, kind: str, subtype: str) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=kind, subtype=subtype)
    return out.getvalue()


def tone(suffix: str, seconds: float = 2.0, options: dict[str, str] | None = None) -> bytes:
    muxer, encoder = SOUNDS[suffix]
    rate = 8_000 if suffix == "amr" else 48_000
    out = io.BytesIO()
    with av.open(out, "w", format=muxer, options=options or {}) as container:
        # the quickest setting: only the hours matter here, not the sound
        quick = {"compression_level": "0", "frame_duration": "60"} if encoder == "libopus" else {}
        stream = container.add_stream(encoder, rate=rate, layout="mono", options=quick)
        encode_sound(container, stream, sine(seconds, rate), rate)
    return out.getvalue()


def song_with_cover() -> bytes:
    """An MP3 with the picture of its album, which FFmpeg presents as a video stream."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=48_000, layout="mono")
        cover = container.add_stream("mjpeg", width=64, height=48, pix_fmt="yuvj420p")
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_image(field())
        frame.pts = 0
        container.mux(cover.encode(frame))
        container.mux(cover.encode(None))
        encode_sound(container, stream, sine(2, 48_000), 48_000)
    return out.getvalue()


def clip(
    suffix: str = "mp4",
    seconds: float = 2.0,
    size: tuple[int, int] = (64, 48),
    sound: bool = True,
    keyframe_every: int = 12,
    turn: Literal[0, 90, 180, 270] = 0,
    options: dict[str, str] | None = None,
) -> bytes:
    """25 frames per second whose red grows from 0 to 250 over the clip, and a tone."""
    muxer, encoder, sound_encoder = CLIPS[suffix]
    out = io.BytesIO()
    with _ordinary_priority(), av.open(out, "w", format=muxer, options=options or {}) as container:
        stream = container.add_stream(encoder, rate=25, pix_fmt="yuv420p", width=size[0], height=size[1])
        stream.codec_context.gop_size = keyframe_every
        stream.codec_context.bit_rate = 1_000_000
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        if turn:
            stream.set_display_rotation(turn)
        audio = container.add_stream(sound_encoder, rate=48_000, layout="mono") if sound else None
        count = round(seconds * 25)
        for index in range(count):
            red = round(250 * index / max(1, count - 1))
            pixels = np.full((size[1], size[0], 3), (red, 80, 160), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            encode_sound(container, audio, sine(seconds, 48_000), 48_000)
    return out.getvalue()


@contextlib.contextmanager
def _ordinary_priority() -> Iterator[None]:
    """SVT-AV1 makes the thread that calls it real-time when it runs as root, and every thread and child after it;
    a browser started from there starves the machine."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def silence_flac(hours: float, rate: int = 8_000) -> bytes:
    """A long, tiny file."""
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", rate, 1, "PCM_16", format="FLAC") as sound:
        minute = np.zeros(60 * rate, np.int16)
        for _ in range(round(hours * 60)):
            sound.write(minute)
    return out.getvalue()


def encode_sound(container: Any, stream: Any, samples: np.ndarray, rate: int) -> None:
    # encoders want whole frames in their own sample format; the FIFO and the resampler see to both
    resampler = av.AudioResampler(stream.codec_context.format.name, "mono", rate)
    frame = av.AudioFrame.from_ndarray(samples[None, :], format="fltp", layout="mono")
    frame.sample_rate, frame.pts = rate, 0
    fifo = av.AudioFifo()
    for piece in resampler.resample(frame):
        fifo.write(piece)
    for piece in fifo.read_many(stream.codec_context.frame_size or 1024, partial=True):
        container.mux(stream.encode(piece))
    container.mux(stream.encode(None))
