"""The network between browser and app goes away in mid-answer: clear words, nothing lost, and it recovers.

A server that is only slow takes nothing from anybody."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from benchmarks.browser import Visitor, analysed
from tests.scripted import RATE, tone
from tests.soak.line import Line, line
from tests.ui import steps
from tests.ui.conftest import PATIENCE_MS, App

pytestmark = pytest.mark.browser
AWAY = "The server cannot be reached"
STUCK = "The connection is stuck: please reload the page"
LOST = "the server no longer has what was attached: please attach it again"
STORY = "slow long story"
TOLD = " ".join(["word"] * 60)
SPOKEN = " ".join(["word"] * 40)
SPOKEN_SECONDS, STORY_SECONDS = 8.0, 12.8
FAST_STORY, FAST_SECONDS = "long story", 12.6
PLAYER = "[...document.querySelectorAll('#voice *')].find((element) => element.speechPlayer).speechPlayer"
KEEP_PEAKS = "addEventListener('pagehide', () => sessionStorage.setItem('peaks', JSON.stringify(window.__peaks)))"
LINES = """() => {
  window.lines = [];
  const line = document.querySelector('#voice [role=status]');
  new MutationObserver(() => window.lines.push(line.textContent)).observe(line, {childList: true, characterData: true});
}"""


@pytest.fixture
def wire(app: App) -> Iterator[Line]:
    with line(httpx.URL(app.url).port or 0) as made:
        yield made


@pytest.fixture
def visitor(browser: Any, wire: Line) -> Iterator[Visitor]:
    """In the middle of a long answer."""
    opened = Visitor(browser, wire.url)
    opened.ask(STORY)
    expect(steps.bot(opened).first).to_contain_text("story")
    yield opened
    opened.close()


def heard(visitor: Visitor) -> float:
    """Seconds of sound, without its gaps."""
    return seconds(visitor.page.evaluate("window.__peaks"))


def seconds(peaks: list[dict[str, Any]]) -> float:
    sound = analysed(peaks, 0.0)
    return sound.seconds - sum(length for _, length in sound.gaps) if sound else 0.0


def whole_heard(visitor: Visitor, length: float, before: float = 0.0) -> None:
    expect(steps.bot(visitor).first).to_contain_text(TOLD, timeout=40_000)
    steps.silent(visitor, 40)
    assert before + heard(visitor) == pytest.approx(length, abs=1.0)  # each of its words rounds up to 10 ms


def whole_again(visitor: Visitor) -> None:
    expect(steps.user(visitor)).to_have_text([STORY])
    expect(steps.bot(visitor).first).to_contain_text(TOLD, timeout=40_000)
    visitor.ask("are you back")
    expect(steps.bot(visitor).filter(has_text="echo: are you back")).to_be_visible()


def lose_sight(visitor: Visitor, wire: Line) -> None:
    wire.cut()
    expect(steps.status(visitor)).to_have_text(AWAY)
    visitor.page.evaluate("window.before = true")


def renewed(visitor: Visitor, wire: Line) -> float:
    """Mends the network, and waits for the new page; returns the seconds of sound that the old one has played."""
    visitor.page.evaluate(KEEP_PEAKS)
    wire.mend()
    visitor.page.wait_for_function("!window.before")  # since Gradio's streams are dead
    return seconds(visitor.page.evaluate("JSON.parse(sessionStorage.getItem('peaks'))"))


def test_a_browser_that_is_offline_is_told_and_goes_on_when_it_is_back(visitor: Visitor) -> None:
    visitor.context.set_offline(True)
    expect(steps.status(visitor)).to_have_text(AWAY)
    visitor.context.set_offline(False)
    expect(steps.status(visitor)).not_to_have_text(AWAY)
    whole_heard(visitor, STORY_SECONDS)
    whole_again(visitor)


def test_a_network_that_goes_without_a_word_is_told_and_the_page_comes_back_with_what_was_being_written(
    visitor: Visitor, wire: Line
) -> None:
    visitor.box.fill("half a thought")
    lose_sight(visitor, wire)
    before = renewed(visitor, wire)
    expect(visitor.box).to_have_value("half a thought")
    whole_heard(visitor, STORY_SECONDS, before)
    whole_again(visitor)


def test_what_was_said_while_the_network_was_away_is_heard_by_itself(browser: Any, wire: Line) -> None:
    with contextlib.closing(Visitor(browser, wire.url)) as visitor:
        visitor.ask(FAST_STORY)
        expect(steps.status(visitor)).to_have_text("speaking")
        lose_sight(visitor, wire)
        before = renewed(visitor, wire)
        steps.finished(visitor)
        whole_heard(visitor, FAST_SECONDS, before)


@pytest.mark.parametrize("unwanted", ["this answer", "any speech"])
def test_the_new_page_speaks_to_nobody_who_has_pressed_stop_or_switched_speech_off(
    visitor: Visitor, wire: Line, unwanted: str
) -> None:
    expect(steps.status(visitor)).to_have_text("speaking")
    visitor.page.get_by_role("button", name="Settings").first.click()
    lose_sight(visitor, wire)
    if unwanted == "this answer":
        steps.press(visitor, "Stop")
    else:
        visitor.page.get_by_label("Speak answers").uncheck()
    renewed(visitor, wire)
    steps.finished(visitor, seconds=40)
    visitor.ask("one two three four")
    steps.finished(visitor, 2)
    steps.silent(visitor)
    assert heard(visitor) == pytest.approx(
        1.0, abs=0.3
    )  # the next answer alone; a setting is not kept without a network


def test_an_answer_of_which_nothing_had_come_is_heard_from_its_beginning(browser: Any, app: App, wire: Line) -> None:
    with contextlib.closing(Visitor(browser, wire.url)) as visitor:
        visitor.page.route("**/gradio_api/queue/data*", lambda route: None)
        visitor.ask(FAST_STORY)
        steps.until(visitor, lambda: app.engine.working == 1)
        lose_sight(visitor, wire)
        visitor.page.unroute("**/gradio_api/queue/data*")
        renewed(visitor, wire)
        whole_heard(visitor, FAST_SECONDS)


def test_speech_whose_connection_breaks_goes_on_by_another(browser: Any, app: App) -> None:
    tries = itertools.count(1)

    def twice_broken(route: Any) -> None:
        if next(tries) < 3:
            route.abort("connectionreset")
        else:
            route.continue_()

    with contextlib.closing(Visitor(browser, app.url)) as visitor:
        visitor.page.route("**/gradio_api/voice/*", twice_broken)
        visitor.ask("one two three four")
        steps.finished(visitor)
        expect(steps.status(visitor)).to_have_text("speaking")
        steps.silent(visitor)
        assert heard(visitor) == pytest.approx(1.0, abs=0.3)


def test_no_recording_is_lost_when_the_network_is_back(visitor: Visitor, wire: Line) -> None:
    lose_sight(visitor, wire)
    steps.press(visitor, "Talk")
    expect(steps.status(visitor)).to_contain_text("listening")
    wire.mend()
    expect(steps.status(visitor)).to_have_text(STUCK)
    assert visitor.page.evaluate("window.before")
    expect(visitor.page.locator("[aria-pressed=true]")).to_have_count(1)


@pytest.mark.parametrize("gone", [False, True])
def test_the_new_page_has_what_was_attached_and_tells_of_what_the_server_has_lost(
    visitor: Visitor, wire: Line, picture: Path, recording: Path, gone: bool
) -> None:
    visitor.page.set_input_files("#box input[type=file]", [picture, recording])
    attached = visitor.page.locator("#box .thumbnail-item")
    expect(attached).to_have_count(2)
    visitor.box.fill("what are these")
    lose_sight(visitor, wire)
    for copy in Path(os.environ["GRADIO_TEMP_DIR"]).glob(f"*/{picture.name}") if gone else ():
        copy.unlink()
    wire.mend()
    visitor.page.wait_for_function("!window.before")
    expect(attached).to_have_count(1 if gone else 2)
    expect(visitor.box).to_have_value("what are these")
    if gone:
        expect(steps.status(visitor)).to_have_text(LOST)
    visitor.box.press("Enter")
    answer = "[audio]" if gone else "[image] [audio]"
    expect(steps.bot(visitor).filter(has_text=f"echo: what are these {answer}")).to_be_visible()


def test_what_is_written_comes_over_where_nobody_tells_of_the_files(
    visitor: Visitor, wire: Line, picture: Path
) -> None:
    visitor.page.set_input_files("#box input[type=file]", picture)
    expect(visitor.page.locator("#box .thumbnail-item")).to_have_count(1)
    visitor.box.fill("half a thought")
    visitor.page.route(
        "**/gradio_api/file=**", lambda route: route.abort() if route.request.method == "HEAD" else route.continue_()
    )
    lose_sight(visitor, wire)
    wire.mend()
    visitor.page.wait_for_function("!window.before")
    expect(visitor.box).to_have_value("half a thought")
    expect(steps.status(visitor)).to_have_text(LOST)


@pytest.mark.parametrize("missed", [1, 2])
def test_a_slow_server_does_not_take_the_page_away_in_mid_answer(visitor: Visitor, missed: int) -> None:
    looks: list[Any] = []

    def slowly(route: Any) -> None:
        looks.append(route)
        if len(looks) > missed:  # the others are never answered
            route.continue_()

    visitor.page.route("**/gradio_api/app_id", slowly)
    if missed == 1:
        visitor.page.route("**/gradio_api/queue/join*", lambda route: None)  # what the page then asks has to wait
    visitor.page.evaluate("window.before = true")
    visitor.box.fill("half a thought")
    expect(steps.bot(visitor).first).to_contain_text(TOLD, timeout=40_000)
    steps.until(visitor, lambda: len(looks) > missed)
    expect(steps.status(visitor)).to_have_text("")
    assert visitor.page.evaluate("window.before")
    expect(visitor.box).to_have_value("half a thought")


def miss(visitor: Visitor, missed: set[int]) -> None:
    """Looks at the server fail that have one of these numbers; the others, and the questions of the page, get a
    connection of their own, which no cut has found."""
    looks = itertools.count(1)

    def anew(route: Any) -> None:
        route.fulfill(response=route.fetch())

    def look(route: Any) -> None:
        if next(looks) in missed:
            route.abort()
        else:
            anew(route)

    visitor.page.route("**/gradio_api/app_id", look)
    visitor.page.route("**/gradio_api/queue/join*", anew)
    visitor.page.route("**/gradio_api/voice/*", anew)


@pytest.mark.parametrize("arrived", ["all of it", "its beginning"])
def test_speech_is_heard_to_its_end_over_a_short_dropout_and_does_not_hide_that_the_page_is_stuck(
    browser: Any, app: App, wire: Line, monkeypatch: pytest.MonkeyPatch, arrived: str
) -> None:
    monkeypatch.setattr(app.engine, "word_seconds", 0.1)  # half as long as a word is spoken
    with contextlib.closing(Visitor(browser, wire.url)) as visitor:
        if arrived == "all of it":
            whole = {"body": tone(SPOKEN_SECONDS), "headers": {"X-Sample-Rate": str(RATE)}}
            visitor.page.route("**/gradio_api/voice/*", lambda route: route.fulfill(**whole))
        visitor.ask(SPOKEN)
        expect(steps.status(visitor)).to_have_text("speaking")
        miss(visitor, {1})
        wire.cut()
        wire.mend()
        assert app.engine.working == 1
        expect(steps.status(visitor)).to_have_text(STUCK)
        visitor.page.wait_for_function(f"!{PLAYER}.speaking", timeout=PATIENCE_MS)
        expect(steps.status(visitor)).to_have_text(STUCK)
        assert heard(visitor) == pytest.approx(SPOKEN_SECONDS, abs=0.5)


def test_looks_that_fail_again_and_again_neither_silence_an_answer_nor_call_a_living_page_stuck(
    visitor: Visitor,
) -> None:
    expect(steps.status(visitor)).to_have_text("speaking")
    visitor.page.evaluate(LINES)
    miss(visitor, {1, 3})
    expect(steps.bot(visitor).first).to_contain_text(TOLD, timeout=40_000)
    steps.silent(visitor)
    assert STUCK not in visitor.page.evaluate("window.lines")
    assert heard(visitor) == pytest.approx(STORY_SECONDS, abs=1.0)  # each of its words rounds up to 10 ms


STRICT = """() => {
  const Real = AudioContext;
  let pressed = false;
  addEventListener('click', () => { pressed = true; }, {capture: true});
  window.AudioContext = class extends Real {
    constructor(options) { super(options); if (!pressed) this.suspend(); }
    resume() { return pressed ? super.resume() : new Promise(() => {}); }
  };
}"""
"""As browsers that forget with a new page that its visitor has clicked in the one before."""


def test_a_new_page_that_may_make_no_sound_yet_asks_for_a_key_or_a_click(browser: Any, app: App) -> None:
    with contextlib.closing(Visitor(browser, app.url)) as visitor:
        with visitor.page.expect_request("**/gradio_api/voice/*") as asked:
            visitor.ask("long story")
        steps.finished(visitor)
        left = {"run": asked.value.url.rpartition("/")[2], "owed": False, "from": 10.6}
        visitor.page.evaluate("(left) => sessionStorage.setItem('speech', JSON.stringify(left))", left)
        visitor.page.add_init_script(f"({STRICT})()")
        visitor.page.reload()
        expect(steps.status(visitor)).to_have_text("Press a key or click to hear the rest")
        visitor.page.locator("#chat").click()
        expect(steps.status(visitor)).to_have_text("speaking")
        steps.silent(visitor)
        assert heard(visitor) == pytest.approx(2.0, abs=0.3)
