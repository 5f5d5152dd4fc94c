"""Run the original and then the quantized model on the same text and the same sentence, one in memory at a time."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantize import engines, quality, reload, speech
from quantize.checkpoint import Checkpoint
from quantize.errors import QuantizeError
from quantize.progress import Tell, silent
from quantize.speech import Speech, Spoken

log = logging.getLogger(__name__)
_MARGIN = 1.25
"""Memory over the size of the loaded weights, for the work."""
_WINDOWS = 8
_FRAMES, _RANDOM_FRAMES = 200, 6
"""Of 80 ms, at most; the noise of a random model need not be long."""
_RANDOM = "the original predicts no better than chance, so its weights are random and it says no words"


@dataclass(frozen=True, slots=True)
class Measured:
    quality: Mapping[str, float] = field(default_factory=dict)
    speech: Speech | None = None
    not_measured: Mapping[str, str] = field(default_factory=dict)
    """Why, by "quality" and "speech"."""


def measure(
    source: Checkpoint, quantized: Path, wavs: Path, ram: int, windows: int = _WINDOWS, tell: Tell = silent
) -> Measured:
    """What quantizing changed in what the model writes and says; why not, where the models cannot be run.

    In FP32 where that fits, so that only quantization differs, else in BF16; activations are rounded as the serving
    engine would. wavs: the folder that gets both sounds. ram: free bytes.
    """
    if source.size * _MARGIN > ram:
        why = f"the model needs {source.size * _MARGIN / 1e9:.0f} GB of memory to run and {ram / 1e9:.0f} GB are free"
        return Measured(not_measured=dict.fromkeys(_wanted(source), why))
    try:
        return _compared(source, quantized, wavs, ram, windows, tell)
    except Exception as error:
        # No tokenizer, an architecture that transformers does not know: the layers are as sound as they were.
        log.exception("The models could not be run.")
        why = f"the models could not be run here ({type(error).__name__}; the log has more)"
        return Measured(not_measured=dict.fromkeys(_wanted(source), why))


def _compared(source: Checkpoint, quantized: Path, wavs: Path, ram: int, windows: int, tell: Tell) -> Measured:
    tools = engines.tools_of(source)
    model: Any = engines.load(source, exact=2 * source.size * _MARGIN < ram)
    text = engines.text_part(model, source)
    given = quality.pieces(tools.tokenizer if source.is_omni else tools, quality.held_out(), windows)
    tell("measure", 0, 4, "the original reads")
    try:
        states = quality.states(text, given)
    except QuantizeError as error:
        return Measured(not_measured={name: str(error) for name in _wanted(source)})
    head = quality.head(text).clone()
    random = quality.by_chance(quality.compare(given, states, states, (head, head))["perplexity"], head.shape[0])
    frames = _RANDOM_FRAMES if random else _FRAMES
    tell("measure", 1, 4, "the original speaks")
    before = _say(model, source, tools, frames)
    reload.put_weights(model, quantized)
    reload.round_inputs(model, quantized)
    tell("measure", 2, 4, "the quantized model reads")
    figures = quality.compare(given, states, quality.states(text, given), (head, quality.head(text)))
    tell("measure", 3, 4, "the quantized model speaks")
    after = _say(model, source, tools, frames)
    del model, text
    spoken, why = _compare_speech(source, before, after, wavs, random)
    tell("measure", 4, 4, "")
    return Measured(figures, spoken, {"speech": why} if why else {})


def _wanted(source: Checkpoint) -> tuple[str, ...]:
    return ("quality", "speech") if source.is_omni else ("quality",)


def _say(model: Any, source: Checkpoint, tools: Any, frames: int) -> Spoken | None:
    if not source.is_omni or not getattr(model, "has_talker", False):
        return None
    return engines.say(model, source, tools, speech.SENTENCE, frames)


def _compare_speech(
    source: Checkpoint, before: Spoken | None, after: Spoken | None, wavs: Path, random: bool
) -> tuple[Speech | None, str]:
    """The comparison, and why it is not whole."""
    if before is None or after is None:
        return None, "the model has no talker" if source.is_omni else ""
    saved = speech.save(before, after, wavs)
    return (saved, _RANDOM) if random else speech.listen(saved, wavs, speech.listener())
