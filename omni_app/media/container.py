"""FFmpeg (through PyAV) on a short leash: the demuxer is named, nothing else is opened, codecs are from a list."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Never

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

PICTURE_DECODERS = (
    *("h264", "hevc", "vp8", "libvpx-vp8", "vp9", "libvpx-vp9", "av1", "libdav1d"),
    *("mpeg4", "h263", "mjpeg"),
)
SOUND_DECODERS = (
    *("aac", "aac_fixed", "mp3", "mp3float", "mp2", "mp2float", "opus", "libopus", "vorbis", "libvorbis", "flac"),
    *("alac", "amrnb", "amrwb", "libopencore_amrnb", "libopencore_amrwb", "ac3", "eac3"),
    *("adpcm_ms", "adpcm_ima_wav", "adpcm_ima_qt", "gsm_ms", "pcm_alaw", "pcm_mulaw", "pcm_u8", "pcm_s8"),
    *("pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be"),
    *("pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be"),
)
"""What people's files hold. FFmpeg reads hundreds more, which nobody needs here and which have been attacked before."""


@dataclass(slots=True)
class Tally:
    """How much of a stream could be decoded: pieces are packets."""

    good: int = 0
    bad: int = 0
    encrypted: bool = False

    @property
    def mostly_bad(self) -> bool:
        return self.bad > self.good

    def note(self, seconds: float, declared: float | None) -> str:
        """What to tell the visitor about a stream of which only a part is there; empty when nothing is amiss."""
        if declared and seconds < 0.95 * declared:
            return f"Only {seconds:.1f} of its {declared:.1f} seconds could be read; the rest is damaged or missing."
        return "Parts of it are damaged." if self.bad else ""


def _refuse(url: str, *_: object) -> Never:
    raise PermissionError("media files may not open other files")


@contextmanager
def opened(file: BinaryIO, demuxer: str, max_pixels: int) -> Iterator[InputContainer]:
    """Open one file with the one demuxer that `sniff` named. Raises av.FFmpegError.

    Playlists, references to other files and network addresses have no way out: no protocol is allowed, and the
    callback for nested files refuses. `max_pixels` bounds the frames that FFmpeg decodes on its own to look inside.
    """
    options = {"protocol_whitelist": "none", "codec_whitelist": ",".join(PICTURE_DECODERS + SOUND_DECODERS)}
    with av.open(file, "r", format=demuxer, options=options, io_open=_refuse, metadata_errors="replace") as container:
        for stream in (*container.streams.video, *container.streams.audio):
            if stream.codec_context is None:  # a codec that FFmpeg does not know
                continue
            # one thread: the parts of this app share few cores, and each frame thread holds a frame in memory
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"max_pixels": str(max_pixels)}
        yield container


def readable(stream: VideoStream | AudioStream) -> bool:
    """Whether the stream's codec is on our list. FFmpeg's own list of codecs binds only its first look at a file."""
    return stream.codec_context is not None and stream.codec_context.name in PICTURE_DECODERS + SOUND_DECODERS


def picture_stream(container: InputContainer) -> VideoStream | None:
    """The moving picture, if there is one; the cover of an album is none."""
    moving = (s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
    return next(moving, None)


def sound_stream(container: InputContainer) -> AudioStream | None:
    return next(iter(container.streams.audio), None)


def packets(container: InputContainer, *streams: VideoStream | AudioStream) -> Iterator[Packet[Any]]:
    """The packets of some streams up to the end or to where the file stops making sense, the flushing one included."""
    source = container.demux(*streams)
    while True:
        try:
            packet = next(source)
        except (StopIteration, av.FFmpegError):
            return
        yield packet


def declared_seconds(container: InputContainer) -> float | None:
    """What the header says, which may be nothing or a lie."""
    return container.duration / av.time_base if container.duration and container.duration > 0 else None
