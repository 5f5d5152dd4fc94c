"""Clips: checked from end to end and kept as they are; frames and sound are taken out for engines that need them."""

from __future__ import annotations

import secrets
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from omni_app.conversation import Part
from omni_app.media import audio, sniff
from omni_app.media.clip_check import check_clip
from omni_app.media.container import Tally, opened, packets, picture_stream, sound_stream
from omni_app.media.job import Job

Stopped = Callable[[], bool]
"""Whether nobody waits any more."""

MAX_FRAME_SIDE = 1024
_MAX_FRAME_PIXELS = 200_000_000
"""A net below `normalise`, which has checked these files against the settings."""


def normalise(job: Job, found: sniff.Format) -> Part:
    """A checked clip as it came, or the sound of a file without a moving picture as WAV. Raises MediaRejected."""
    try:
        with opened(job.file, found.reader, job.limits.max_pixels) as container:
            if picture_stream(container) is None:
                return audio.normalise(job, found, container)
            facts = check_clip(job, found, container)
    except av.FFmpegError as error:
        raise job.rejected(f"is damaged or cut off: it begins like {found.words} but cannot be read.") from error
    width, height = facts.size
    return Part(
        "video",
        path=_keep(job, found.suffix),
        name=job.name,
        mime=found.mime,
        seconds=facts.seconds,
        width=width,
        height=height,
        has_sound=facts.has_sound,
        note=facts.note,
    )


def _keep(job: Job, suffix: str) -> Path:
    target = job.target(suffix)
    job.file.seek(0)
    with target.open("wb") as copy:
        shutil.copyfileobj(job.file, copy, 2**20)
    return target


def frames(path: Path, count: int, stopped: Stopped = lambda: False) -> list[Image.Image]:
    """Up to `count` evenly spaced pictures of a clip from `ingest`, RGB, upright, at most 1024 px on the long side.

    Fewer when the clip has fewer, or once `stopped` comes true; none when nothing can be decoded.
    """
    with _reopened(path) as container:
        stream = picture_stream(container)
        return [] if stream is None else [_image(frame) for frame in _pick(container, stream, count, stopped)]


def sound(path: Path, into: Path, stopped: Stopped = lambda: False) -> Path | None:
    """The sound of a clip from `ingest` as a 16 kHz mono WAV in the folder `into`, or None when it has none. It ends
    where `stopped` comes true."""
    with _reopened(path) as container:
        stream = sound_stream(container)
        if stream is None:
            return None
        target = into / f"{secrets.token_hex(16)}.wav"
        written = 0
        try:
            with audio.WavWriter(target, audio.RATE) as wav:
                for pcm in takewhile(lambda _: not stopped(), audio.decode(container, stream, Tally())):
                    wav.write(pcm)
            written = wav.samples
        finally:
            if not written:  # a clip without a single sample, or a full disk
                target.unlink(missing_ok=True)
    return target if written else None


@contextmanager
def _reopened(path: Path) -> Iterator[InputContainer]:
    with path.open("rb") as file:
        found = sniff.sniff(file.read(sniff.HEAD_BYTES))
        file.seek(0)
        if found is None or not found.clip:
            raise ValueError("not a clip that `ingest` returned")
        with opened(file, found.reader, _MAX_FRAME_PIXELS) as container:
            yield container


def _pick(container: InputContainer, stream: VideoStream, count: int, stopped: Stopped) -> Iterator[VideoFrame]:
    """Decodes only what leads up to the wanted frames: jumps to the last keyframe before each where that is ahead."""
    shown, keys = _timestamps(container, stream)
    source: Iterator[VideoFrame] = iter(())
    here: float = float("-inf")
    for wanted in _spread(shown, count):
        key = keys[max(0, bisect_right(keys, wanted) - 1)] if keys else shown[0]
        if key > here:
            container.seek(key, stream=stream)
            source = _decoded(container, stream, stopped)
        frame = next((f for f in source if f.pts is not None and f.pts >= wanted), None)
        if frame is None:
            return
        here = frame.pts or wanted
        yield frame


def _timestamps(container: InputContainer, stream: VideoStream) -> tuple[list[int], list[int]]:
    """When each frame is shown and which are keyframes, in the stream's time base, in order; decodes nothing."""
    marks = [(p.pts, p.is_keyframe) for p in packets(container, stream) if p.pts is not None]
    return sorted(pts for pts, _ in marks), sorted(pts for pts, key in marks if key)


def _spread(shown: list[int], count: int) -> list[int]:
    """The frames on screen at the middles of `count` equal stretches of time, each once."""
    if not shown:
        return []
    # the last frame is shown as long as the others are on average
    span = shown[-1] - shown[0]
    start, length = shown[0], span + (span // (len(shown) - 1) if span else 1)
    moments = (start + (2 * i + 1) * length // (2 * count) for i in range(count))
    return sorted({shown[bisect_right(shown, moment) - 1] for moment in moments})


def _decoded(container: InputContainer, stream: VideoStream, stopped: Stopped) -> Iterator[VideoFrame]:
    """Frames from where the container stands; what cannot be decoded is left out. A clip with few keyframes may take
    minutes, so it is asked before each frame whether anybody still waits."""
    for packet in takewhile(lambda _: not stopped(), packets(container, stream)):
        try:
            found = stream.codec_context.decode(packet)
        except av.FFmpegError:
            continue
        yield from found


def _image(frame: VideoFrame) -> Image.Image:
    scale = min(1.0, MAX_FRAME_SIDE / max(frame.width, frame.height))
    width, height = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
    # both FFmpeg and Pillow count degrees against the clock
    return Image.fromarray(pixels).rotate(frame.rotation, expand=True)
