"""Kokoro-82M (int8 ONNX) speaking English: phonemes from eSpeak NG, sound from onnxruntime.

Importing this module loads onnxruntime; import it only where Kokoro is going to speak.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import phonemizer
from kokoro_onnx import Kokoro
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

from omni_app.engines.builtin.pacing import POLL_SECONDS, Cancelled
from omni_app.engines.builtin.waveform import Samples, from_float, trim
from omni_app.errors import EngineFailed

_LANGUAGE = "en-us"
_CURRENCIES = ((r"\$", "dollars"), ("€", "euros"), ("£", "pounds"))
_AMOUNT = r"\d+(?:,\d{3})*(?:\.\d+)?(?: (?:thousand|million|billion|trillion))?"
# phonemizer cuts the text at punctuation before eSpeak NG sees it, which tears these apart.
_SPELLED: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    *((re.compile(rf"{sign}({_AMOUNT})"), rf"\1 {name}") for sign, name in _CURRENCIES),
    (re.compile(r"(?<=\d)\.(\d+)"), lambda match: " point " + " ".join(match[1])),
    (re.compile(r"(?<=\d):(?=\d\d)"), " "),
    (re.compile(r"(?<=\d)\s*×\s*(?=\d)"), " times "),
)


class _Session(onnxruntime.InferenceSession):  # type: ignore[misc]
    """A session whose current run can be broken off; kokoro-onnx itself passes no run options."""

    run_options: onnxruntime.RunOptions | None = None

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        return super().run(output_names, input_feed, run_options or self.run_options)


class KokoroVoices:
    """One loaded model; not to be used by two threads at a time."""

    def __init__(self, model: Path, voices: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Clauses differ in length, so a remembered memory plan never fits; spinning would take the language
        # model's core while nothing is being said.
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = _Session(str(model), options, providers=["CPUExecutionProvider"])
        self._kokoro = Kokoro.from_session(self._session, str(voices))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._kokoro.get_voices())

    def synthesize(self, text: str, voice: str, cancelled: Cancelled) -> Samples:
        """`text` spoken, 24 kHz; empty when cancelled or when nothing in it can be pronounced. Raises EngineFailed."""
        phonemes = self._phonemes(text)
        if not phonemes or cancelled():
            return np.zeros(0, np.int16)
        options = onnxruntime.RunOptions()
        # Without this the session keeps what its longest clause took (450 instead of 230 MB).
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._session.run_options = options
        try:
            with _broken_off_when(cancelled, options):
                samples, _ = self._kokoro.create(phonemes, voice, is_phonemes=True, trim=False)
        except (Fail, RuntimeException) as error:
            if options.terminate:
                return np.zeros(0, np.int16)
            raise EngineFailed("The speech model failed in the middle of the answer; the text is complete.") from error
        return trim(from_float(samples))

    def _phonemes(self, text: str) -> str:
        """Phonemes that the model knows. Flags like "(fr)" for foreign words are left out: they would be spoken."""
        # phonemizer keeps its backend, and that backend's copy of eSpeak NG, from one call to the next.
        logging.getLogger("phonemizer").setLevel(logging.ERROR)  # it warns of every text whose word count it lost
        spoken = phonemizer.phonemize(
            spelled(text), _LANGUAGE, preserve_punctuation=True, with_stress=True, language_switch="remove-flags"
        )
        return str(self._kokoro.tokenizer.known(spoken)).strip()


def spelled(text: str) -> str:
    """`text` with decimals, prices, times and products in English words."""
    for pattern, words in _SPELLED:
        text = pattern.sub(words, text)
    return text


@contextlib.contextmanager
def _broken_off_when(cancelled: Cancelled, options: onnxruntime.RunOptions) -> Iterator[None]:
    done = threading.Event()

    def watch() -> None:
        while not done.wait(POLL_SECONDS):
            if cancelled():
                options.terminate = True
                return

    watcher = threading.Thread(target=watch, name="speech-cancel", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
