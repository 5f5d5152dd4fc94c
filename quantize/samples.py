"""Calibration samples: a folder, a JSONL file, or the small set that comes with this package."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantize.errors import CalibrationUnusable
from quantize.schemes import MIXES

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

OWN = Path(__file__).with_name("samples.jsonl")
_TEXTS = {".txt", ".md"}
_IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_SOUNDS = {".wav", ".flac", ".mp3", ".ogg"}
_SOUND_RATE = 16_000
_SOUND_SECONDS = 30
_IMAGE_SIDE = 768
_TEXT_CHARACTERS = 8_000
_LEAST = 2
KINDS = ("sound", "picture", "text")
_ASKED = {"sound": "What do you hear?", "picture": "What do you see?", "text": ""}


@dataclass(frozen=True, slots=True)
class Sample:
    """One question, as a user would put it."""

    text: str
    image: Image | None = None
    sound: np.ndarray | None = None
    """F32 mono at 16 kHz."""


@dataclass(frozen=True, slots=True)
class Samples:
    found: tuple[Sample, ...]
    skipped: tuple[str, ...]
    """Files and lines that could not be read, each with why."""


def read(where: str, count: int, media: bool, mix: str = "") -> Samples:
    """The first `count` samples that can be read; of a set that is too small, every one again until there are enough.

    media: whether the model takes pictures and sound; if not, samples with them are left out. mix: of schemes.MIXES;
    as many of each kind as it says, and none twice.
    Raises CalibrationUnusable where fewer than two can be read, or fewer of a kind than the mix wants.
    """
    require_set(where, count, media, mix)
    path = Path(where) if where else OWN
    open_places = _quotas(mix, count) if mix else Counter(dict.fromkeys(KINDS if media else ("text",), count))
    found: list[Sample] = []
    skipped: list[str] = []
    for name, entry in _entries(path, skipped):
        if len(found) == count:
            break
        if not open_places[_held(entry)]:
            continue
        try:
            found.append(_sample(path.parent if path.is_file() else path, entry))
            open_places[_held(entry)] -= 1
        except (OSError, ValueError, RuntimeError) as error:
            skipped.append(f"{name}: {error}")
    _require(path, found, skipped, count, +open_places if mix else Counter())
    return Samples(tuple(itertools.islice(itertools.cycle(found), max(len(found), count))), tuple(skipped))


def state(where: str) -> str:
    """Tells one state of a set from another, by the names, sizes and times of its files. Of a JSONL file: of that."""
    path = Path(where) if where else OWN
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    held = ((str(file), file.stat()) for file in files if file.is_file())
    told = [(name, at.st_size, at.st_mtime_ns) for name, at in held]
    return hashlib.sha256(repr(told).encode(errors="surrogateescape")).hexdigest()


def require_set(where: str, count: int, media: bool, mix: str) -> None:
    """What can be told without reading anything. Raises CalibrationUnusable for a mix that cannot be."""
    if mix and not (where and media):
        lack = "a data set of your own, a folder or a JSONL file" if media else "a model that takes pictures and sound"
        raise CalibrationUnusable(f"The calibration mix of {_in_words(_quotas(mix, count))} needs {lack}.")


def _require(path: Path, found: list[Sample], skipped: list[str], count: int, lacking: Counter[str]) -> None:
    first = f", {skipped[0]} for one" if skipped else ""
    if lacking:
        raise CalibrationUnusable(
            f"{path} lacks {_in_words(lacking)} for its mix ({len(skipped)} samples cannot be read{first}); "
            "add them, or ask for fewer samples."
        )
    if len(found) < min(_LEAST, count):
        raise CalibrationUnusable(
            f"Only {len(found)} calibration samples in {path} can be used ({len(skipped)} cannot be read{first}); "
            f"give at least {_LEAST}."
        )


def _quotas(mix: str, count: int) -> Counter[str]:
    """Samples of each kind; texts make up for what rounding leaves."""
    shares = MIXES[mix]
    found = Counter({kind: count * share // sum(shares.values()) for kind, share in shares.items()})
    found["text"] += count - found.total()
    return found


def _in_words(quotas: Counter[str]) -> str:
    return ", ".join(f"{number} of {kind}" for kind, number in quotas.items())


def _held(entry: dict[str, str]) -> str:
    return "sound" if "audio" in entry else "picture" if "image" in entry else "text"


def log(given: Samples) -> None:
    """Name what was skipped, for the job's log."""
    if given.skipped:
        print(f"Skipped {len(given.skipped)} calibration samples that cannot be read:", flush=True)
        print("\n".join(given.skipped), flush=True)


def _entries(path: Path, skipped: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if kind := _kind(file):
                yield file.name, {kind: str(file), "text": ""} if kind != "file" else {"file": str(file)}
        return
    if not path.is_file():
        raise CalibrationUnusable(f"There is no calibration set at {path}; name a folder or a JSONL file.")
    with path.open(encoding="utf-8-sig", errors="replace") as lines:  # str.splitlines would cut at U+2028 and its like
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                yield f"line {number}", {str(key): str(value) for key, value in entry.items() if value is not None}
            except (ValueError, AttributeError):
                skipped.append(f"line {number}: no JSON object")


def _kind(file: Path) -> str:
    suffix = file.suffix.lower()
    return "file" if suffix in _TEXTS else "image" if suffix in _IMAGES else "audio" if suffix in _SOUNDS else ""


def _sample(base: Path, entry: dict[str, str]) -> Sample:
    """Raises OSError, ValueError or RuntimeError for what cannot be read."""
    if "file" in entry:
        text = Path(entry["file"]).read_text()[:_TEXT_CHARACTERS]
    else:
        text = entry.get("text") or _ASKED[_held(entry)]
    if not text.strip():
        raise ValueError('it is empty: there is no "text", "image" or "audio" in it')
    image = _image(base / entry["image"]) if "image" in entry else None
    sound = _sound(base / entry["audio"]) if "audio" in entry else None
    return Sample(text, image, sound)


def _image(path: Path) -> Image:
    from PIL import Image as Pictures

    try:
        with Pictures.open(path) as picture:
            small = picture.convert("RGB")
    except (Pictures.DecompressionBombError, SyntaxError) as error:  # Pillow's own words for too large, and for damaged
        raise ValueError(str(error)) from error
    small.thumbnail((_IMAGE_SIDE, _IMAGE_SIDE))
    return small


def _sound(path: Path) -> np.ndarray:
    import soundfile

    # Opened here: a path that soundfile cannot read, librosa would try again with whatever programs there are.
    with soundfile.SoundFile(path) as file:
        import librosa

        sound: np.ndarray = librosa.load(file, sr=_SOUND_RATE, mono=True, duration=_SOUND_SECONDS)[0]
    if not len(sound):
        raise ValueError("there is no sound in it")
    return sound
