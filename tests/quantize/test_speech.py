"""Speech before and after: words counted, listeners that fail told, and what the model says saved."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from quantize import speech
from quantize.speech import Speech, word_error_rate, word_errors

SAID = Speech(speech.SENTENCE, speech.SENTENCE, speech.SENTENCE)
HEARS = {
    "all": "print('The old lighthouse stands on the cliff and every evening its lamp warns the ships')",
    "worse_after": "print('the old lighthouse stands on the cliff and every evening its lamp warns', "
    "'a ship' if 'after' in sys.argv[1] else 'the ships')",
    "nothing": "pass",
    "fails": "sys.exit('no model')",
}


@pytest.fixture
def scripted_listener(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> speech.Listen:
    """A program that hears what it is told to."""
    script = tmp_path / "listener.py"
    script.write_text(f"import sys\n{HEARS[request.param]}\n")
    monkeypatch.setenv("QUANTIZE_ASR", f"{sys.executable} '{script}'")
    found = speech.listener()
    assert found is not None
    return found


def test_word_errors() -> None:
    assert word_errors(["a", "b"], ["a", "b"]) == 0
    assert word_errors(["a", "b", "c"], ["a", "x", "c", "d"]) == 2
    assert word_errors([], ["a"]) == 1
    assert word_errors(["a", "b"], []) == 2


def test_word_error_rate_looks_at_words_alone() -> None:
    assert word_error_rate("It's late, he said.", "it's LATE he said") == 0
    assert word_error_rate("one two three four", "one two four") == 0.25
    assert word_error_rate("", "one") == 1


@pytest.mark.parametrize(
    ("scripted_listener", "rate"), [("all", 0), ("worse_after", 2 / 15)], indirect=["scripted_listener"]
)
def test_words_are_compared(scripted_listener: speech.Listen, rate: float, tmp_path: Path) -> None:
    found, why = speech.listen(SAID, tmp_path, scripted_listener)
    assert why == ""
    assert found.word_error_rate == pytest.approx(rate)
    assert found.word_error_rate_before == 0
    assert found.word_error_rate_after == pytest.approx(rate)


@pytest.mark.parametrize(
    ("scripted_listener", "says"),
    [("nothing", "does not understand the original either"), ("fails", "failed (no model)")],
    indirect=["scripted_listener"],
)
def test_a_listener_that_hears_nothing_gives_no_rate(
    scripted_listener: speech.Listen, says: str, tmp_path: Path
) -> None:
    found, why = speech.listen(SAID, tmp_path, scripted_listener)
    assert says in why
    assert found.word_error_rate is None


def test_without_a_listener_the_way_to_one_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("QUANTIZE_ASR", raising=False)
    assert speech.listener() is None
    found, why = speech.listen(SAID, tmp_path, None)
    assert found == SAID
    assert "QUANTIZE_ASR" in why


def test_a_listener_that_does_not_exist_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QUANTIZE_ASR", "/nowhere/listener")
    assert "cannot be run" in speech.listen(SAID, tmp_path, speech.listener())[1]
