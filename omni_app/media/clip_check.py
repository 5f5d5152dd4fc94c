"""One pass over a whole clip: how long it really is, whether its pictures and its sound decode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from av import FFmpegError
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from omni_app.errors import MediaRejected
from omni_app.media import audio
from omni_app.media.container import Tally, declared_seconds, packets, picture_stream, readable, sound_stream
from omni_app.media.job import Job
from omni_app.media.limits import in_words
from omni_app.media.sniff import Format

_LOOK_EVERY_SECONDS = 5.0
"""How often a picture is decoded to see that it can be; of the sound everything is decoded."""
_SLACK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class ClipFacts:
    seconds: float
    size: tuple[int, int]
    """Width and height in pixels as shown, after turning a phone's clip upright."""
    has_sound: bool
    note: str


def check_clip(job: Job, found: Format, container: InputContainer) -> ClipFacts:
    """Facts about a clip with a moving picture. Raises MediaRejected or av.FFmpegError."""
    picture, sound = picture_stream(container), sound_stream(container)
    assert picture is not None
    if not found.clip:
        raise job.rejected(f"is {found.words} with a moving picture, which is not read. Save it as MP4.")
    _check_picture(job, picture)
    if sound is not None:
        audio.check_sound(job, sound)
    declared = declared_seconds(container) or 0.0
    if declared > 2 * job.limits.max_video_seconds:
        raise _too_long(job, in_words(declared))
    tour = _Tour(job, picture, sound)
    for packet in packets(container, *(stream for stream in (picture, sound) if stream is not None)):
        job.deadline.check()
        tour.visit(packet)
    return tour.verdict(declared)


def _check_picture(job: Job, stream: VideoStream) -> None:
    if not readable(stream) or not stream.width or not stream.height:
        raise job.rejected("is damaged or uses a picture format that is not read here. Save it as MP4 (H.264).")
    if stream.codec_tag == "encv":
        raise job.rejected("is protected against copying (DRM). Send an unprotected copy.")
    if stream.width * stream.height > job.limits.max_pixels:
        raise job.rejected(
            f"is too large: {stream.width} x {stream.height} pixels; "
            f"at most {job.limits.max_image_megapixels} megapixels are taken. Send a smaller copy."
        )


def _too_long(job: Job, length: str) -> MediaRejected:
    limit = in_words(job.limits.max_video_seconds)
    return job.rejected(f"lasts {length}; clips may last {limit} at most. Cut it into pieces.")


class _Tour:
    """Counts what a clip holds, packet by packet."""

    def __init__(self, job: Job, picture: VideoStream, sound: AudioStream | None) -> None:
        self._job = job
        self._picture = picture
        self._sound = sound
        self._first: float | None = None
        self._end = 0.0
        self._next_look = 0.0
        self._sound_seconds = 0.0
        self._size: tuple[int, int] | None = None
        self._pictures = Tally()
        self._sounds = Tally()

    @property
    def _seconds(self) -> float:
        return max(self._end - (self._first or 0.0), self._sound_seconds)

    def visit(self, packet: Packet[Any]) -> None:
        """Raises MediaRejected as soon as the clip proves too long or protected."""
        if packet.has_sidedata("encryption_info"):
            raise self._job.rejected("is protected against copying (DRM). Send an unprotected copy.")
        if packet.stream_index == self._picture.index:
            self._visit_picture(packet)
        else:
            self._visit_sound(packet)
        if self._seconds > self._job.limits.max_video_seconds + _SLACK_SECONDS:
            raise _too_long(self._job, f"more than {in_words(self._job.limits.max_video_seconds)}")

    def _visit_picture(self, packet: Packet[Any]) -> None:
        if packet.pts is None or packet.time_base is None:
            return
        now = float(packet.pts * packet.time_base)
        self._first = now if self._first is None else min(self._first, now)
        self._end = max(self._end, now + float((packet.duration or 0) * packet.time_base))
        if packet.is_keyframe and now >= self._next_look:
            self._next_look = now + _LOOK_EVERY_SECONDS
            self._look(packet)

    def _look(self, packet: Packet[Any]) -> None:
        frame = decode_alone(self._picture, packet)
        if frame is None:
            self._pictures.bad += 1
            return
        self._pictures.good += 1
        turned = frame.rotation % 180 != 0
        self._size = (frame.height, frame.width) if turned else (frame.width, frame.height)

    def _visit_sound(self, packet: Packet[Any]) -> None:
        assert self._sound is not None
        try:
            for frame in self._sound.codec_context.decode(packet):
                self._sounds.good += 1
                self._sound_seconds += frame.samples / frame.sample_rate
        except FFmpegError:
            self._sounds.bad += 1

    def verdict(self, declared: float) -> ClipFacts:
        """Raises MediaRejected when too little of the clip is there or can be decoded."""
        if self._size is None or self._pictures.mostly_bad:
            raise self._job.rejected("is damaged: its pictures cannot be decoded. Save it again as MP4.")
        if self._sounds.mostly_bad:
            raise self._job.rejected("is damaged: its sound cannot be decoded. Save it again as MP4.")
        if self._seconds < declared / 2:
            raise self._job.rejected(
                f"is cut off: only {self._seconds:.1f} of {declared:.1f} seconds are there. Send the whole file again."
            )
        both = Tally(self._pictures.good + self._sounds.good, self._pictures.bad + self._sounds.bad)
        return ClipFacts(self._seconds, self._size, self._sounds.good > 0, both.note(self._seconds, declared))


def decode_alone(stream: VideoStream, packet: Packet[Any]) -> VideoFrame | None:
    """The picture in one keyframe, or None when it is damaged. The decoder is emptied afterwards."""
    context = stream.codec_context
    try:
        found = [*context.decode(packet), *context.decode(None)]
    except FFmpegError:
        found = []
    context.flush_buffers()
    return found[0] if found else None
