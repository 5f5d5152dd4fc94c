"""The listening half of the speech check with real speech: Kokoro speaks, `python -m omni_app transcribe` listens."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from omni_app.engines.builtin.speak import KOKORO_NAMES, Speaker
from omni_app.settings import Settings
from quantize import speech
from quantize.speech import Speech, Spoken

pytestmark = pytest.mark.models

SENTENCES = (speech.SENTENCE, "Paris is the capital of France, and it lies on the river Seine.")


@pytest.fixture(scope="module")
def said() -> Iterator[list[Spoken]]:
    """Each sentence, as a model that works would say it."""
    speaker = Speaker(Settings(builtin_speech="kokoro"))
    pcm = [speaker.synthesize(sentence, KOKORO_NAMES[0]) for sentence in SENTENCES]
    yield [
        Spoken(sentence, sound.astype(np.float32) / 2**15) for sentence, sound in zip(SENTENCES, pcm, strict=True)
    ]  # fmt: skip
    speaker.close()


@pytest.fixture(autouse=True)
def listener(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the app names itself to the quantizer."""
    monkeypatch.setenv("QUANTIZE_ASR", shlex.join([sys.executable, "-m", "omni_app", "transcribe"]))


def damaged(spoken: Spoken) -> Spoken:
    """The same under noise twice as strong, as a model that lost its voice would say it."""
    power = float(np.sqrt(np.mean(spoken.sound**2)))
    noise = np.random.default_rng(0).normal(0, 2 * power, len(spoken.sound))
    return Spoken(spoken.text, np.clip(spoken.sound + noise, -1, 1).astype(np.float32))


def compared(before: Spoken, after: Spoken, folder: Path) -> tuple[Speech, str]:
    """As `quantize.measure` compares what both models said."""
    folder.mkdir()
    return speech.listen(speech.save(before, after, folder), folder, speech.listener())


def test_words_are_heard_and_their_loss_too(said: list[Spoken], tmp_path: Path) -> None:
    for number, spoken in enumerate(said):
        same, why = compared(spoken, spoken, tmp_path / f"same-{number}")
        assert why == ""
        assert same.word_error_rate == 0
        assert (same.word_error_rate_before or 0) < 0.2
        worse, why = compared(spoken, damaged(spoken), tmp_path / f"worse-{number}")
        assert why == ""
        print(f"word error rate: clean {same.word_error_rate_before:.0%}, damaged {worse.word_error_rate:.0%}")
        assert (worse.word_error_rate or 0) > 0.4
        assert (worse.word_error_rate_before or 0) < 0.2


def test_an_original_that_nobody_understands_is_told(said: list[Spoken], tmp_path: Path) -> None:
    found, why = compared(damaged(said[0]), said[0], tmp_path / "found")
    assert "does not understand the original either" in why
    assert found.word_error_rate is None
