"""Hands-free talk in a real browser: a pause sends what was said, then the microphone opens for the next question."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from playwright.sync_api import expect

from benchmarks.browser import Visitor, launched
from omni_app.media.audio import write_wav
from tests.ui.conftest import App
from tests.ui.steps import finished, press, silent, status, until

pytestmark = pytest.mark.browser
Visit = Callable[..., Visitor]
ASSETS = Path(__file__).parents[2] / "assets"
SCRIPT = Path(__file__).parents[2] / "omni_app/ui/static/hands_free.js"
RATE, BLOCK = 16_000, 128
EARS = """([peaks, seconds]) => {
  const pauses = new PauseDetector();
  let at = 0;
  for (const peak of peaks) {
    pauses.hear(peak, seconds);
    at += seconds;
    if (pauses.paused) return ['paused', at];
    if (pauses.nothing) return ['nothing', at];
  }
  return ['listening', at];
}"""


@pytest.fixture(scope="module")
def ears(browser: Any) -> Iterator[Callable[[np.ndarray], tuple[str, float]]]:
    """What the page's pause detector says of samples of -1 to 1 at 16 kHz, and after how many seconds."""
    page = browser.new_page()
    page.add_script_tag(content=SCRIPT.read_text() + "\nwindow.PauseDetector = PauseDetector;")

    def hear(samples: np.ndarray) -> tuple[str, float]:
        blocks = samples[: len(samples) // BLOCK * BLOCK].reshape(-1, BLOCK)
        said, seconds = page.evaluate(EARS, [np.abs(blocks).max(axis=1).tolist(), BLOCK / RATE])
        return str(said), float(seconds)

    yield hear
    page.close()


def noise(seconds: float, loud: float) -> np.ndarray:
    return np.random.default_rng(7).normal(0, loud, round(seconds * RATE))


@pytest.fixture(scope="module")
def question() -> np.ndarray:
    samples, rate = soundfile.read(ASSETS / "question.wav")
    seconds = len(samples) / rate
    return np.interp(np.arange(0, seconds, 1 / RATE), np.arange(0, seconds, 1 / rate)[: len(samples)], samples)


@pytest.mark.parametrize("loud", [0.0, 0.001, 0.01, 0.03])
def test_a_spoken_question_ends_with_its_pause_in_quiet_and_in_noise(
    ears: Callable[[np.ndarray], tuple[str, float]], question: np.ndarray, loud: float
) -> None:
    spoken = np.concatenate([np.zeros(RATE), question, np.zeros(4 * RATE)])
    said, seconds = ears(spoken + noise(len(spoken) / RATE, loud))
    last_loud = (RATE + np.flatnonzero(np.abs(question) > 0.1)[-1]) / RATE
    assert said == "paused"
    assert last_loud + 0.5 < seconds < last_loud + 2.0


@pytest.mark.parametrize("loud", [0.0, 0.003, 0.03, 0.1])
def test_a_room_in_which_nobody_speaks_sends_nothing(
    ears: Callable[[np.ndarray], tuple[str, float]], loud: float
) -> None:
    room = np.concatenate([np.zeros(RATE // 5), noise(14, loud)])
    assert ears(room)[0] == "nothing"


def test_a_door_that_slams_is_no_question(ears: Callable[[np.ndarray], tuple[str, float]]) -> None:
    room = noise(14, 0.002)
    room[RATE : RATE + RATE // 10] += 0.9
    assert ears(room)[0] == "nothing"


def visiting(playwright: Any, app: App, microphone: Path) -> Iterator[Visitor]:
    """With that sound at the microphone; at the end nothing may have gone wrong in the console."""
    app.rest()
    browser = launched(playwright, microphone=microphone)
    visitor = Visitor(browser, app.url)
    yield visitor
    problems = visitor.problems
    browser.close()
    assert problems == []


@pytest.fixture
def speaker(playwright: Any, app: App, tmp_path: Path, question: np.ndarray) -> Iterator[Visitor]:
    """A visitor who asks a question of some seconds whenever the microphone opens, and then says nothing more."""
    spoken = np.concatenate([np.zeros(RATE // 2), question])
    write_wav(tmp_path / "spoken.wav", (spoken * 32767).astype("<i2").tobytes(), RATE)
    yield from visiting(playwright, app, tmp_path / "spoken.wav")


def test_one_press_and_then_only_talk(speaker: Visitor, app: App, question: np.ndarray) -> None:
    asked = len(app.engine.asked)
    press(speaker, "Hands-free")
    finished(speaker, 2, seconds=60)
    assert len(app.engine.asked) >= asked + 2
    for messages, _ in app.engine.asked[asked : asked + 2]:
        part = messages[-1].parts[0]
        assert part.kind == "audio"
        assert part.seconds == pytest.approx(len(question) / RATE + 0.5 + 1.2, abs=1.5)
    expect(status(speaker)).to_contain_text("listening", timeout=20_000)
    speaker.page.keyboard.press("Escape")
    silent(speaker)
    asked = len(app.engine.asked)
    speaker.page.wait_for_timeout(1500)
    expect(status(speaker)).to_have_text("recording discarded")
    assert len(app.engine.asked) == asked


def test_stop_gives_the_turn_to_nobody_and_the_choice_is_kept(speaker: Visitor, app: App) -> None:
    press(speaker, "Hands-free")
    until(speaker, lambda: app.engine.working == 1)
    speaker.page.keyboard.press("Escape")
    silent(speaker)
    speaker.page.wait_for_timeout(1500)
    expect(status(speaker)).to_have_text("")
    speaker.reload()
    expect(switch(speaker)).to_have_attribute("aria-pressed", "true")
    press(speaker, "Hands-free")
    expect(switch(speaker)).to_have_attribute("aria-pressed", "false")
    speaker.reload()
    expect(switch(speaker)).to_have_attribute("aria-pressed", "false")
    expect(status(speaker)).to_have_text("")


def test_an_answer_to_what_was_typed_opens_no_microphone(visit: Visit) -> None:
    visitor = visit()
    visitor.page.evaluate("localStorage.setItem('omni-hands-free', 'on')")
    visitor.reload()
    visitor.ask("one two")
    finished(visitor)
    silent(visitor)
    visitor.page.wait_for_timeout(1000)
    expect(visitor.page.get_by_role("button", name="Talk", exact=True)).to_have_attribute("aria-pressed", "false")


@pytest.fixture
def listener(playwright: Any, app: App, tmp_path: Path) -> Iterator[Visitor]:
    """A visitor who says nothing."""
    write_wav(tmp_path / "silence.wav", b"\0\0" * RATE * 30, RATE)
    yield from visiting(playwright, app, tmp_path / "silence.wav")


def switch(visitor: Visitor) -> Any:
    return visitor.page.get_by_role("button", name="Hands-free", exact=True)


def talk(visitor: Visitor) -> Any:
    return visitor.page.get_by_role("button", name="Talk", exact=True)


@pytest.mark.parametrize("by", ["Enter", "Retry"])
def test_asking_in_another_way_closes_the_microphone_that_would_hear_the_answer(listener: Visitor, by: str) -> None:
    listener.ask("one two")
    finished(listener)
    silent(listener)
    press(listener, "Hands-free")
    expect(status(listener)).to_contain_text("listening", timeout=10_000)
    if by == "Enter":
        listener.ask("three four")
        finished(listener, 2)
    else:
        press(listener, "Retry")
        expect(status(listener)).to_have_text("speaking")
        finished(listener)
    expect(talk(listener)).to_have_attribute("aria-pressed", "false")
    silent(listener)
    listener.page.wait_for_timeout(1000)
    expect(status(listener)).to_have_text("")


def test_switched_on_in_mid_answer_it_waits_for_the_end_and_off_it_closes_a_microphone_that_heard_nothing(
    listener: Visitor, app: App
) -> None:
    asked = len(app.engine.asked)
    listener.ask("one two three four five six seven eight")
    expect(status(listener)).to_have_text("speaking", timeout=10_000)
    press(listener, "Hands-free")
    expect(status(listener)).to_have_text("speaking")
    finished(listener)
    expect(listener.page.locator("#chat .figures")).not_to_contain_text("stopped")
    expect(status(listener)).to_contain_text("listening", timeout=20_000)
    press(listener, "Hands-free")
    expect(status(listener)).to_have_text("the microphone is closed")
    expect(talk(listener)).to_have_attribute("aria-pressed", "false")
    assert len(app.engine.asked) == asked + 1


def test_what_was_begun_to_be_said_is_not_lost_when_hands_free_is_switched_off(speaker: Visitor, app: App) -> None:
    asked = len(app.engine.asked)
    press(speaker, "Hands-free")
    expect(status(speaker)).to_contain_text("listening, 2 s", timeout=10_000)
    press(speaker, "Hands-free")
    press(speaker, "Send")
    finished(speaker)
    assert len(app.engine.asked) == asked + 1
    speaker.page.wait_for_timeout(1000)
    expect(talk(speaker)).to_have_attribute("aria-pressed", "false")


def test_who_leaves_for_another_conversation_is_not_listened_to_there(listener: Visitor) -> None:
    listener.ask("slow long story")
    expect(status(listener)).to_have_text("speaking", timeout=10_000)
    press(listener, "Hands-free")
    press(listener, "New conversation")
    silent(listener)
    listener.page.wait_for_timeout(1500)
    expect(status(listener)).to_have_text("")
    expect(talk(listener)).to_have_attribute("aria-pressed", "false")


def test_without_a_microphone_nothing_is_hands_free(visit: Visit) -> None:
    visitor = visit()
    visitor.page.evaluate("""() => {
      navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('no', 'NotAllowedError'));
    }""")
    press(visitor, "Hands-free")
    expect(status(visitor)).to_have_text("the browser did not allow the microphone")
    switch = visitor.page.get_by_role("button", name="Hands-free", exact=True)
    expect(switch).to_have_attribute("aria-pressed", "false")
