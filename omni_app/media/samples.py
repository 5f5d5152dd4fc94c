"""The smallest picture, sound and clip that any model takes, to ask a server whether it takes such things at all."""

from __future__ import annotations

from pathlib import Path

from omni_app.conversation import Kind, Part

SIDE_PX = 64
"""Smaller pictures are refused by Qwen's processors, whose patches are 32 pixels wide."""
SOUND_RATE_HZ = 16_000
SOUND_S = 1.0
"""vllm-omni 0.30 refuses a sound of 0.1 s as too short."""
CLIP_FRAMES = 4


def sample(kind: Kind, folder: Path) -> Part:
    """A file of that kind, written into the folder. `kind` is not `text`."""
    makers = {"image": _picture, "audio": _sound, "video": _clip}
    return makers[kind](folder)


def _picture(folder: Path) -> Part:
    from PIL import Image

    path = folder / "grey.png"
    Image.linear_gradient("L").resize((SIDE_PX, SIDE_PX)).convert("RGB").save(path)
    return Part("image", path=path, mime="image/png", width=SIDE_PX, height=SIDE_PX)


def _sound(folder: Path) -> Part:
    from omni_app.media.audio import write_wav

    path = folder / "quiet.wav"
    write_wav(path, bytes(2 * round(SOUND_S * SOUND_RATE_HZ)), SOUND_RATE_HZ)
    return Part("audio", path=path, mime="audio/wav", seconds=SOUND_S)


def _clip(folder: Path) -> Part:
    import av
    import numpy as np

    path = folder / "grey.mp4"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=CLIP_FRAMES, pix_fmt="yuv420p", width=SIDE_PX, height=SIDE_PX)
        for number in range(CLIP_FRAMES):
            grey = np.full((SIDE_PX, SIDE_PX, 3), 40 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return Part("video", path=path, mime="video/mp4", seconds=1.0, width=SIDE_PX, height=SIDE_PX)
