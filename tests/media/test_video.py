"""Clips are kept as they came; frames and sound come out of them in order."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from omni_app.errors import MediaRejected
from omni_app.media import audio, video
from tests.media import makers

pytestmark = pytest.mark.anyio


def _kept(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest.mark.parametrize("suffix", list(makers.CLIPS))
async def test_each_container_is_kept_with_its_facts(take, suffix: str) -> None:
    part = await take(makers.clip(suffix, size=(96, 64)), "wrong.wav")
    assert (part.kind, part.width, part.height) == ("video", 96, 64)
    assert part.path.suffix == "." + suffix.split(".")[-1]
    assert part.mime.startswith("video/")
    assert part.seconds == pytest.approx(2, abs=0.1)
    assert part.has_sound


@pytest.mark.parametrize("suffix", ["mp4", "mov", "webm", "mkv"])
@pytest.mark.parametrize("keyframe_every", [1, 12, 500])
async def test_frames_are_evenly_spaced(take, suffix: str, keyframe_every: int) -> None:
    part = await take(makers.clip(suffix, keyframe_every=keyframe_every))
    frames = video.frames(part.path, 5)
    reds = [int(np.asarray(frame)[24, 32, 0]) for frame in frames]
    assert [frame.mode for frame in frames] == ["RGB"] * 5
    assert reds == pytest.approx([25, 75, 125, 175, 225], abs=9)


async def test_a_clip_with_few_frames_gives_each_once(take) -> None:
    part = await take(makers.clip(seconds=0.12, sound=False))
    assert len(video.frames(part.path, 10)) == 3


async def test_frames_are_at_most_1024_px(take) -> None:
    part = await take(makers.clip(seconds=0.4, size=(2048, 512), sound=False))
    assert (part.width, part.height) == (2048, 512)
    assert [frame.size for frame in video.frames(part.path, 2)] == [(1024, 256)] * 2


@pytest.mark.parametrize(("turn", "size"), [(90, (48, 64)), (180, (64, 48)), (270, (48, 64))])
async def test_a_phone_held_upright(take, turn: int, size: tuple[int, int]) -> None:
    part = await take(makers.clip("mp4", turn=turn, sound=False))
    assert (part.width, part.height) == size
    assert video.frames(part.path, 1)[0].size == size


async def test_a_stop_is_seen_on_the_way_to_the_first_frame_and_within_the_sound(take, into: Path) -> None:
    part = await take(makers.clip(seconds=4, keyframe_every=500))
    asked = []

    def stopped() -> bool:
        asked.append(True)
        return len(asked) % 5 == 0

    assert video.frames(part.path, 1, stopped) == []
    assert len(asked) == 5
    path = video.sound(part.path, into, stopped)
    assert path is not None
    assert len(audio.read_wav(path)[0]) < 16_000
    assert len(asked) == 10


async def test_the_sound_of_a_clip(take, into: Path) -> None:
    part = await take(makers.clip())
    path = video.sound(part.path, into)
    samples, rate = audio.read_wav(path)
    assert (path.parent, rate) == (into, 16_000)
    assert len(samples) / rate == pytest.approx(2, abs=0.1)
    assert np.sqrt(np.mean(samples**2)) == pytest.approx(0.3 / np.sqrt(2), abs=0.03)


async def test_a_clip_without_sound_has_none(take, into: Path) -> None:
    part = await take(makers.clip(sound=False))
    assert not part.has_sound
    assert video.sound(part.path, into) is None
    assert _kept(into) == [part.path]


async def test_damaged_clips_still_give_what_is_there(take, into: Path) -> None:
    whole = bytearray(makers.clip("webm", seconds=4))
    whole[len(whole) * 2 // 3 :] = bytes(len(whole) - len(whole) * 2 // 3)
    part = await take(bytes(whole))
    assert "Only" in part.note
    assert video.frames(part.path, 3)
    assert video.sound(part.path, into)


async def test_a_clip_over_the_limit_is_refused(take, limits) -> None:
    with pytest.raises(MediaRejected, match=r"lasts more than 1 second; clips may last 1 second at most"):
        await take(makers.clip(seconds=1.8), limits=replace(limits, max_video_seconds=1))
    with pytest.raises(MediaRejected, match=r"lasts 4 seconds"):
        await take(makers.clip(seconds=4), limits=replace(limits, max_video_seconds=1))


async def test_a_clip_of_giant_frames_is_refused(take, limits) -> None:
    clip = makers.clip(seconds=0.2, size=(1280, 1024), sound=False)
    with pytest.raises(MediaRejected, match=r"1280 x 1024 pixels; at most 1 megapixels"):
        await take(clip, limits=replace(limits, max_image_megapixels=1))
