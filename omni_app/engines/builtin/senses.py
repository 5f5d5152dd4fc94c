"""Ears and eyes of the builtin engine: loaded when first needed, one job at a time each, transcripts remembered."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from PIL import Image

from omni_app.conversation import Part
from omni_app.engines.builtin.describe import describe_clip, describe_picture
from omni_app.engines.builtin.fetching import Progress
from omni_app.engines.builtin.look import Sight, merge
from omni_app.engines.builtin.pacing import POLL_SECONDS, Cancelled
from omni_app.engines.builtin.parts import Ears, Eyes, Parts
from omni_app.errors import MediaRejected
from omni_app.scratch import scratch

_FRAMES = 4
_REMEMBERED = 128

T = TypeVar("T")


class Stopped(Exception):
    """The reply was cancelled; there is nobody to tell."""


class Senses:
    def __init__(self, parts: Parts, progress: Progress) -> None:
        self._ears: _Lazy[Ears] = _Lazy(parts.ears)
        self._eyes: _Lazy[Eyes] = _Lazy(lambda: parts.eyes(progress))
        self._transcripts: OrderedDict[tuple[Path, int], str] = OrderedDict()

    def warm_up(self) -> None:
        """Load the ears, which most visitors will use. Raises AssetUnavailable."""
        with self._ears.turn(lambda: False):
            pass

    def hear(self, part: Part, cancelled: Cancelled) -> str | None:
        """What is said in a sound or a clip: empty when there are no words, None when a clip has no sound.

        Raises MediaRejected, EngineFailed, AssetUnavailable, and Stopped when cancelled.
        """
        path = _here(part)
        if (known := self.recall(path)) is not None:
            return known
        if part.kind != "video":
            return self._transcribe(path, _key(path), cancelled)
        with scratch() as folder:
            wav = _clip_sound(path, folder, cancelled)
            return None if wav is None else self._transcribe(wav, _key(path), cancelled)

    def _transcribe(self, wav: Path, key: tuple[Path, int], cancelled: Cancelled) -> str:
        with self._ears.turn(cancelled) as ears:
            text = ears.transcribe(wav, cancelled)
            if cancelled():
                raise Stopped
            self._transcripts[key] = text
            while len(self._transcripts) > _REMEMBERED:
                self._transcripts.popitem(last=False)
        return text

    def recall(self, path: Path) -> str | None:
        """The transcript of a file heard before; None for any other."""
        try:
            return self._transcripts.get(_key(path))
        except OSError:
            return None

    def see_picture(self, part: Part, cancelled: Cancelled) -> str:
        """Sentences. Raises MediaRejected, AssetUnavailable, and Stopped when cancelled."""
        # Decoded only when it is its turn: several large pictures at once would take all the memory.
        with self._eyes.turn(cancelled) as eyes:
            return describe_picture(eyes.look(_decoded(part)))

    def see_clip(self, part: Part, transcript: str | None, cancelled: Cancelled) -> str:
        """Sentences. Raises MediaRejected, AssetUnavailable, and Stopped when cancelled."""
        sights = [self._look(frame, cancelled) for frame in _clip_frames(_here(part), cancelled)]
        return describe_clip(merge(sights) if sights else None, part.seconds, transcript)

    def _look(self, image: Image.Image, cancelled: Cancelled) -> Sight:
        with self._eyes.turn(cancelled) as eyes:
            return eyes.look(image)

    def close(self) -> None:
        self._ears.drop(lambda ears: ears.close())
        self._eyes.drop(lambda _: None)


def _here(part: Part) -> Path:
    if part.path is None or not part.path.is_file():
        raise _gone(part)
    return part.path


def _decoded(part: Part) -> Image.Image:
    try:
        with Image.open(_here(part)) as file:
            file.load()
            return file
    except OSError as error:
        raise _gone(part) from error


def _gone(part: Part) -> MediaRejected:
    what = {"image": "picture", "audio": "sound", "video": "clip"}.get(part.kind, "file")
    return MediaRejected(f"The {what} {part.name} can no longer be read; please send it again.".replace("  ", " "))


def _clip_sound(path: Path, folder: Path, cancelled: Cancelled) -> Path | None:
    from omni_app.media import video

    with _clip_errors():
        return video.sound(path, folder, cancelled)


def _clip_frames(path: Path, cancelled: Cancelled) -> list[Image.Image]:
    from omni_app.media import video

    with _clip_errors():
        return video.frames(path, _FRAMES, cancelled)


@contextmanager
def _clip_errors() -> Iterator[None]:
    import av

    try:
        yield
    except (av.FFmpegError, ValueError, OSError) as error:
        raise MediaRejected("The clip can no longer be read; please send it again.") from error


def _key(path: Path) -> tuple[Path, int]:
    return path, path.stat().st_mtime_ns


class _Lazy(Generic[T]):
    """A part made on first use and used by one thread at a time; a failed making is tried again the next time."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: T | None = None
        self._lock = threading.Lock()

    @contextmanager
    def turn(self, cancelled: Cancelled) -> Iterator[T]:
        """Raises Stopped when `cancelled` comes true before it is this thread's turn."""
        while not self._lock.acquire(timeout=POLL_SECONDS):
            if cancelled():
                raise Stopped
        try:
            if cancelled():
                raise Stopped
            if self._made is None:
                self._made = self._make()
            yield self._made
        finally:
            self._lock.release()

    def drop(self, close: Callable[[T], None]) -> None:
        with self._lock:
            if self._made is not None:
                close(self._made)
                self._made = None
