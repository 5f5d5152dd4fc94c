"""The speaker with eSpeak NG's real voice, and with a stand-in for Kokoro's model."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omni_app.conversation import AudioDelta
from omni_app.engines.builtin import espeak, speak
from omni_app.engines.builtin.fetching import Asset
from omni_app.engines.builtin.pacing import Cancelled
from omni_app.engines.builtin.speak import ESPEAK_NAMES, KOKORO_NAMES, Speaker, Utterance
from omni_app.engines.builtin.speech_speed import Speed
from omni_app.engines.builtin.waveform import SAMPLE_RATE, Samples, resample, trim
from omni_app.errors import AssetUnavailable, BadRequest
from omni_app.settings import Settings


class FakeKokoro:
    """A tenth of a second of tone per word."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def synthesize(self, text: str, voice: str, cancelled: Cancelled) -> Samples:
        self.said.append(text)
        return np.full(SAMPLE_RATE // 10 * len(text.split()), 5000, np.int16)


def never() -> bool:
    return False


def make_speaker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speech: Any = "auto", rtf: float = 0.3, disturbed: bool = False
) -> tuple[Speaker, FakeKokoro]:
    fake = FakeKokoro()
    monkeypatch.setattr(speak, "fetch", lambda asset, *_: tmp_path / asset.name)
    monkeypatch.setattr(Speaker, "_load_kokoro", lambda *_: (fake, Speed(1, rtf, disturbed)))
    speaker = Speaker(Settings(cache_dir=tmp_path, builtin_speech=speech))
    speaker.load()
    return speaker, fake


def say(utterance: Utterance, text: str) -> list[AudioDelta]:
    for start in range(0, len(text), 5):
        utterance.feed(text[start : start + 5])
    utterance.finish()
    return list(utterance.audio())


def test_kokoro_where_it_keeps_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker, _ = make_speaker(tmp_path, monkeypatch)
    assert speaker.default_voice == "jm_kumo"
    assert speaker.reason == "Kokoro speaks; one second of speech took 0.30 s when this machine was measured."


def test_espeak_where_kokoro_is_too_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker, fake = make_speaker(tmp_path, monkeypatch, rtf=1.3)
    assert speaker.default_voice == "espeak-en-us"
    assert "cannot keep up: one second of speech took 1.30 s when this machine was measured" in speaker.reason
    assert "can be chosen all the same" in speaker.reason
    fake.said.clear()
    say(speaker.utterance("jm_kumo", never), "Asked for by name.")
    assert fake.said == ["Asked for by name."], "the user's choice goes before ours"


def test_a_figure_of_a_busy_machine_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker, _ = make_speaker(tmp_path, monkeypatch, rtf=1.3, disturbed=True)
    assert "was measured, while other programs kept it busy; a later start measures again." in speaker.reason


def test_kokoro_on_request_even_if_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker, _ = make_speaker(tmp_path, monkeypatch, speech="kokoro", rtf=1.3)
    assert speaker.default_voice == "jm_kumo"
    assert "stutter" in speaker.reason


def test_espeak_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker, fake = make_speaker(tmp_path, monkeypatch, speech="espeak")
    assert speaker.default_voice == "espeak-en-us"
    assert fake.said == []
    assert set(KOKORO_NAMES) < set(speaker.voices)


@pytest.mark.parametrize("speech", ["auto", "kokoro"])
def test_kokoro_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speech: Any) -> None:
    def unreachable(asset: Asset, *_: object) -> Path:
        raise AssetUnavailable(f"{asset.name} could not be fetched.")

    monkeypatch.setattr(speak, "fetch", unreachable)
    speaker = Speaker(Settings(cache_dir=tmp_path, builtin_speech=speech))
    if speech == "kokoro":
        with pytest.raises(AssetUnavailable):
            speaker.load()
        return
    speaker.load()
    assert speaker.voices == ESPEAK_NAMES
    assert "could not be fetched" in speaker.reason


def test_unknown_voice_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker, _ = make_speaker(tmp_path, monkeypatch)
    with pytest.raises(BadRequest, match=r"no voice called alloy; choose one of jm_kumo"):
        speaker.utterance("alloy", never)


def test_clauses_come_in_order_with_their_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker, fake = make_speaker(tmp_path, monkeypatch)
    fake.said.clear()
    deltas = say(speaker.utterance(None, never), "In the evening, we all went home. **Good**!")
    assert fake.said == ["In the evening,", "we all went home. Good!"]
    assert [round(delta.seconds, 3) for delta in deltas] == [0.3 + 0.1, 0.5]
    assert {delta.sample_rate for delta in deltas} == {SAMPLE_RATE}


def test_sound_comes_before_the_text_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker, _ = make_speaker(tmp_path, monkeypatch)
    utterance = speaker.utterance(None, never)
    sound = utterance.audio()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, sound)
        utterance.feed("In the evening, ")
        assert first.result(timeout=30).seconds > 0
        rest = pool.submit(list, sound)
        utterance.feed("we went home.")
        utterance.finish()
        assert len(rest.result(timeout=30)) == 1


def test_nothing_speakable_makes_no_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker, _ = make_speaker(tmp_path, monkeypatch)
    assert say(speaker.utterance(None, never), "😀 *** ```x = 1```") == []


def test_cancelled_while_waiting_for_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker, _ = make_speaker(tmp_path, monkeypatch)
    stop = threading.Event()
    utterance = speaker.utterance(None, stop.is_set)
    with ThreadPoolExecutor(1) as pool:
        sound = pool.submit(list, utterance.audio())
        utterance.feed("Not yet a cl")
        stop.set()
        assert sound.result(timeout=30) == []


def test_cancelled_during_a_clause_gives_no_more_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker, fake = make_speaker(tmp_path, monkeypatch)
    stop = threading.Event()
    fake.said.clear()
    utterance = speaker.utterance(None, stop.is_set)
    utterance.feed("In the evening, we went home. It was late. ")
    utterance.finish()
    sound = utterance.audio()
    assert next(sound).seconds > 0
    stop.set()
    assert list(sound) == []
    assert fake.said == ["In the evening,"]


def test_many_replies_at_once_keep_their_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker, _ = make_speaker(tmp_path, monkeypatch)
    counts = range(3, 11)
    with ThreadPoolExecutor(len(counts)) as pool:
        sounds = pool.map(lambda count: say(speaker.utterance(None, never), "word " * count), counts)
    seconds = [sum(delta.seconds for delta in sound) for sound in sounds]
    assert seconds == pytest.approx([count / 10 for count in counts])


@pytest.mark.parametrize("language", espeak.LANGUAGES)
def test_espeak_speaks_each_language(language: str) -> None:
    samples = espeak.synthesize("Radio, 1, 2, 3.", language, never)
    assert 0.5 < len(samples) / SAMPLE_RATE < 10
    assert np.abs(samples).max() > 3000


def test_espeak_languages_sound_different() -> None:
    said = {espeak.synthesize("radio", language, never).tobytes() for language in ("en-us", "en-gb", "de", "fr")}
    assert len(said) == 4


def test_espeak_stops_when_cancelled() -> None:
    assert len(espeak.synthesize("This will not be heard. " * 50, "en-us", lambda: True)) == 0


def test_trim_keeps_the_words_and_loses_the_silence() -> None:
    tone = (8000 * np.sin(np.arange(SAMPLE_RATE) * 0.1)).astype(np.int16)
    quiet = np.full(SAMPLE_RATE, 20, np.int16)
    trimmed = trim(np.concatenate([quiet, tone, quiet]))
    assert 1.0 <= len(trimmed) / SAMPLE_RATE <= 1.07
    assert abs(int(trimmed[0])) + abs(int(trimmed[-1])) == 0, "ends that do not click"
    assert len(trim(quiet)) == 0


def test_resample_keeps_pitch_and_length() -> None:
    rate = 22_050
    tone = (8000 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)).astype(np.int16)
    out = resample(tone, rate)
    assert len(out) / SAMPLE_RATE == pytest.approx(1.0, abs=0.01)
    assert np.argmax(np.abs(np.fft.rfft(out))) * SAMPLE_RATE / len(out) == pytest.approx(1000, abs=5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Pi is 3.14.", "Pi is 3 point 1 4."),
        ("It costs $1,000.50, or £2 million.", "It costs 1,000 point 5 0 dollars, or 2 million pounds."),
        ("at 12:30 or 3:05", "at 12 30 or 3 05"),
        ("3 × 4", "3 times 4"),
        ("for $5, or $6.", "for 5 dollars, or 6 dollars."),
        ("Chapter 3. Then 5: more, e.g. this.", "Chapter 3. Then 5: more, e.g. this."),
    ],
)
def test_figures_are_spelled_for_kokoro(text: str, expected: str) -> None:
    from omni_app.engines.builtin.kokoro import spelled

    assert spelled(text) == expected


@pytest.mark.models
def test_real_kokoro_can_be_broken_off_inside_a_clause(tmp_path: Path) -> None:
    speaker = Speaker(Settings(builtin_speech="kokoro"))
    speaker.load()
    calls = iter([False] * 3)
    text = "The quick brown fox jumps over the lazy dog and runs away. " * 8
    assert len(speaker.synthesize(text, "jm_kumo", lambda: next(calls, True))) == 0
    assert len(speaker.synthesize("Still here.", "jm_kumo")) > 0, "the model is usable afterwards"
