"""What a small machine can honestly tell of a picture: its text, what it resembles, its colours and its size."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from omni_app.engines.builtin.classify import Classifier
from omni_app.engines.builtin.colours import main_colours
from omni_app.engines.builtin.memory import return_free_pages

log = logging.getLogger(__name__)

_READING_SIDE = 1024
"""Longest side in pixels for reading text; one pass of the detector takes half a second on one core at this size."""
_LEAST_PAGE_SIDE = 256
_MOST_ASPECT = 4
_READING_THRESHOLD = 0.8
"""Text below this confidence was, on photographs without any, always something else."""


@dataclass(frozen=True, slots=True)
class Line:
    text: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Sight:
    """All that was found; an empty tuple means that nothing was."""

    size: tuple[int, int]
    """Width and height in pixels."""
    colours: tuple[str, ...]
    lines: tuple[Line, ...]
    things: tuple[tuple[str, float], ...]
    """Name and probability, likeliest first."""


class Looker:
    """`look` may be called from several threads; they take turns, as one picture keeps a core busy."""

    def __init__(self, checkpoint: Path, names: Path, reading_models: Path) -> None:
        """Raises AssetUnavailable."""
        self._classifier = Classifier(checkpoint, names)
        self._reader = _reader(reading_models)
        self._turn = threading.Lock()

    def look(self, image: Image.Image) -> Sight:
        with self._turn:
            small = _readable(image)
            lines, things = self._read(small), self._classifier.top(small)
            return_free_pages()
        return Sight(image.size, main_colours(small), lines, tuple(things))

    def _read(self, image: Image.Image) -> tuple[Line, ...]:
        import numpy as np

        found = self._reader(np.asarray(_page(image))[:, :, ::-1])  # BGR, as OpenCV has it
        lines = zip(found.txts or (), found.scores or (), strict=True)
        return tuple(Line(text, float(score)) for text, score in lines if text.strip())


def _readable(image: Image.Image) -> Image.Image:
    """RGB, and small enough to read; a large picture is never copied at its full size."""
    scale = min(1.0, _READING_SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _page(page: Image.Image) -> Image.Image:
    """Never a thin strip: the reader widens those until memory runs out."""
    least = max(*page.size, _LEAST_PAGE_SIDE) // _MOST_ASPECT
    canvas = Image.new("RGB", (max(page.width, least), max(page.height, least)), page.getpixel((0, 0)))
    canvas.paste(page)
    return canvas


def _reader(models: Path) -> Any:
    """RapidOCR on the models that its own wheel brings; naming the files is what keeps it from fetching any."""
    from rapidocr import RapidOCR

    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.use_cls": False,
            "Global.max_side_len": _READING_SIDE,
            "Global.text_score": _READING_THRESHOLD,
            "Det.limit_side_len": 480,
            "Det.model_path": str(models / "PP-OCRv6_det_small.onnx"),
            "Rec.model_path": str(models / "PP-OCRv6_rec_small.onnx"),
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


def merge(sights: Sequence[Sight]) -> Sight:
    """One sight of several frames of a clip: every text once, probabilities averaged. At least one frame."""
    lines: dict[str, Line] = {}
    likely: dict[str, float] = {}
    for sight in sights:
        for line in sight.lines:
            lines.setdefault(line.text.casefold(), line)
        for name, probability in sight.things:
            likely[name] = likely.get(name, 0.0) + probability / len(sights)
    things = sorted(likely.items(), key=lambda item: -item[1])[:3]
    colours = dict.fromkeys(colour for sight in sights for colour in sight.colours)
    return Sight(sights[0].size, tuple(colours)[:3], tuple(lines.values()), tuple(things))
