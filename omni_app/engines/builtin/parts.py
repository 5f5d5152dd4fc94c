"""What the builtin engine is put together from, and how each part is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from omni_app.conversation import AudioDelta
from omni_app.engines.builtin.assets import EFFICIENTNET, IMAGENET_NAMES, RAPIDOCR, fetch, packaged
from omni_app.engines.builtin.fetching import Progress
from omni_app.engines.builtin.generation import Thought, Turn
from omni_app.engines.builtin.look import Looker, Sight
from omni_app.engines.builtin.pacing import Cancelled
from omni_app.engines.builtin.think import Thinker
from omni_app.settings import Settings


class Mind(Protocol):
    def load(self, path: Path) -> None: ...

    def think(
        self,
        messages: Sequence[Turn],
        say: Callable[[str], None],
        *,
        max_tokens: int,
        temperature: float | None,
        seed: int | None,
        cancelled: Cancelled,
    ) -> Thought: ...

    def close(self) -> None: ...


class Speech(Protocol):
    """The speech of one reply; `feed` and `finish` on one thread, `audio` on another."""

    def feed(self, delta: str) -> None: ...

    def finish(self) -> None: ...

    def audio(self) -> Iterator[AudioDelta]: ...


class Voice(Protocol):
    voices: tuple[str, ...]
    reason: str

    def load(self, progress: Progress) -> None: ...

    def utterance(self, voice: str | None, cancelled: Cancelled) -> Speech: ...

    def close(self) -> None: ...


class Ears(Protocol):
    def transcribe(self, wav: Path, cancelled: Cancelled) -> str: ...

    def close(self) -> None: ...


class Eyes(Protocol):
    def look(self, image: Image.Image) -> Sight: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """Factories. Mind and voice are loaded at start; ears and eyes load as they are made."""

    mind: Callable[[], Mind]
    voice: Callable[[], Voice]
    ears: Callable[[], Ears]
    eyes: Callable[[Progress], Eyes]


def real_parts(settings: Settings) -> Parts:
    from omni_app.engines.builtin.speak import Speaker

    return Parts(Thinker, lambda: Speaker(settings), _listener, lambda progress: _looker(settings, progress))


def _listener() -> Ears:
    from omni_app.engines.builtin.listen import Listener

    return Listener()


def _looker(settings: Settings, progress: Progress) -> Eyes:
    checkpoint, names = (fetch(asset, settings.cache_dir, progress) for asset in (EFFICIENTNET, IMAGENET_NAMES))
    return Looker(checkpoint, names, packaged(RAPIDOCR))
