"""The leash on FFmpeg holds even where the check before it would fail."""

import io
from pathlib import Path

import av
import pytest

from omni_app.errors import MediaRejected
from omni_app.media.container import opened
from tests.media import makers


@pytest.mark.parametrize("demuxer", ["hls", "concat"])
def test_a_playlist_opens_nothing(tmp_path: Path, demuxer: str) -> None:
    target = tmp_path / "secret.aac"
    target.write_bytes(makers.tone("aac"))
    lists = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{target.as_uri()}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile {target}\n",
    }
    source = lists[demuxer].encode()
    with av.open(io.BytesIO(source), format=demuxer, options=_CARELESS[demuxer]) as careless:
        assert next(careless.decode(audio=0)).samples
    with pytest.raises((av.FFmpegError, PermissionError)), opened(io.BytesIO(source), demuxer, 10**6) as container:
        next(container.decode(audio=0))


_CARELESS = {
    "hls": {"allowed_extensions": "ALL", "protocol_whitelist": "file"},
    "concat": {"safe": "0", "protocol_whitelist": "file"},
}


def test_frames_over_the_bound_are_not_decoded() -> None:
    clip = makers.clip(seconds=0.4, size=(640, 480), sound=False)
    with opened(io.BytesIO(clip), "mov", 640 * 480) as container:
        assert next(container.decode(video=0)).width == 640
    with opened(io.BytesIO(clip), "mov", 100 * 100) as container, pytest.raises(av.FFmpegError):
        next(container.decode(video=0))


@pytest.mark.anyio
@pytest.mark.parametrize("codec", [b"V_FFV1", b"V_FFV9"], ids=["off the list", "unknown to anyone"])
async def test_codecs_off_the_list_are_refused(take, codec: bytes) -> None:
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as muxer:
        stream = muxer.add_stream("ffv1", rate=25, width=64, height=48, pix_fmt="yuv420p")
        muxer.mux(stream.encode(av.VideoFrame.from_image(makers.field()).reformat(format="yuv420p")))
        muxer.mux(stream.encode(None))
    with pytest.raises(MediaRejected, match=r"uses a picture format that is not read here. Save it as MP4"):
        await take(out.getvalue().replace(b"V_FFV1", codec))


@pytest.mark.anyio
async def test_sound_codecs_off_the_list_are_refused(take) -> None:
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as muxer:
        stream = muxer.add_stream("tta", rate=16_000, layout="mono")
        makers.encode_sound(muxer, stream, makers.sine(1), 16_000)
    with pytest.raises(MediaRejected, match=r"uses a sound format that is not read here. Save it as WAV or MP3"):
        await take(out.getvalue())
