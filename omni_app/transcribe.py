"""What is said in a file, in words: the builtin engine's listener for whoever has a sound and needs its text."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from omni_app.conversation import Part
from omni_app.engines.builtin.listen import Listener
from omni_app.errors import MediaRejected
from omni_app.media.intake import ingest
from omni_app.media.limits import Limits
from omni_app.scratch import scratch


def transcribe(file: Path, limits: Limits) -> str:
    """English words of a sound or a clip; empty where nobody speaks. Raises OmniError."""
    with scratch() as folder, contextlib.closing(Listener()) as ears:
        part = asyncio.run(ingest(file, name=file.name, into=folder, limits=limits))
        return ears.transcribe(_wav(part, folder))


def _wav(part: Part, folder: Path) -> Path:
    from omni_app.media import video

    wav = part.path if part.kind == "audio" else None
    if part.kind == "video" and part.path is not None:
        wav = video.sound(part.path, folder)
    if wav is None:
        raise MediaRejected(f"There is no sound in {part.name}; choose a recording.")
    return wav
