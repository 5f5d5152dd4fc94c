"""The same sentence spoken by the original and by the quantized model, and whether a listener still gets the words.

The listener is any program: QUANTIZE_ASR holds its command, which is given a WAV's path as its last argument and
prints what it hears, such as `python -m omni_app transcribe`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantize.errors import ListenerFailed

if TYPE_CHECKING:
    import numpy as np

SENTENCE = "The old lighthouse stands on the cliff, and every evening its lamp warns the ships."
RATE = 24_000
"""Hz, of what Qwen3-Omni says."""
BEFORE, AFTER = "speech_before.wav", "speech_after.wav"
_VARIABLE = "QUANTIZE_ASR"
_LISTEN_SECONDS = 300.0
_INTELLIGIBLE = 0.5
"""Word error rate of the original's own speech above which a comparison would say nothing."""

Listen = Callable[[Path], str]
"""A WAV's path to the words in it. Raises ListenerFailed."""


@dataclass(frozen=True, slots=True)
class Spoken:
    text: str
    sound: np.ndarray
    """F32 mono at RATE."""


@dataclass(frozen=True, slots=True)
class Speech:
    """What both models said when asked for one sentence; the rates are None where nobody listened."""

    asked: str
    said_before: str
    said_after: str
    wav_before: str = BEFORE
    """Beside verification.json in the job's folder."""
    wav_after: str = AFTER
    heard_before: str = ""
    heard_after: str = ""
    word_error_rate: float | None = None
    """Of what is heard after, against what is heard before."""
    word_error_rate_before: float | None = None
    """Of what is heard before, against the text that the original wrote."""
    word_error_rate_after: float | None = None
    """Of what is heard after, against the text that the quantized model wrote."""


def listener() -> Listen | None:
    """The program named by QUANTIZE_ASR, None if there is none."""
    command = shlex.split(os.environ.get(_VARIABLE, ""))
    return (lambda wav: _run([*command, str(wav)])) if command else None


def _run(command: list[str]) -> str:
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_LISTEN_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ListenerFailed(f"the command in {_VARIABLE} cannot be run ({error})") from error
    if ended.returncode:
        last = next((line for line in reversed(ended.stderr.splitlines()) if line.strip()), "no reason given")
        raise ListenerFailed(f"the command in {_VARIABLE} failed ({last.strip()[:200]})")
    return ended.stdout.strip()


def save(before: Spoken, after: Spoken, folder: Path) -> Speech:
    """Write both sounds into the folder, and say what was said."""
    import soundfile

    for name, spoken in ((BEFORE, before), (AFTER, after)):
        soundfile.write(folder / name, spoken.sound, RATE, subtype="PCM_16")
    return Speech(SENTENCE, before.text, after.text)


def listen(speech: Speech, folder: Path, hear: Listen | None) -> tuple[Speech, str]:
    """The speech with what was heard of it, and why the words could not be compared, empty if they could."""
    if hear is None:
        return speech, f"no listener is given; name one in {_VARIABLE}"
    try:
        before, after = hear(folder / speech.wav_before), hear(folder / speech.wav_after)
    except ListenerFailed as error:
        return speech, str(error)
    heard = replace(speech, heard_before=before, heard_after=after)
    own = word_error_rate(speech.said_before, before)
    if not words(before) or own > _INTELLIGIBLE:
        return heard, f"the listener does not understand the original either ({own:.0%} of the words wrong)"
    return replace(
        heard, word_error_rate=word_error_rate(before, after), word_error_rate_before=own,
        word_error_rate_after=word_error_rate(speech.said_after, after),
    ), ""  # fmt: skip


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)?", text.lower())


def word_error_rate(reference: str, heard: str) -> float:
    """Wrong, missing and added words over the reference's words; may exceed 1."""
    said = words(reference)
    return word_errors(said, words(heard)) / max(len(said), 1)


def word_errors(said: Sequence[str], heard: Sequence[str]) -> int:
    """Levenshtein distance in words."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        above_left, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            above_left, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above_left + (word != other))
    return row[-1]
