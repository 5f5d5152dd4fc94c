"""The network between browser and app goes away in mid-answer: clear words, nothing lost, and it recovers.

A server that is only slow takes nothing from anybody."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
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
    app.rest()
    with line(httpx.URL(app.url).port or 0) as made:
        yield made


@contextlib.contextmanager
def visitors(browser: Any, url: str, count: int) -> Iterator[list[Visitor]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Visitor(browser, url))) for _ in range(count)]


@contextlib.contextmanager
def in_mid_answer(browser: Any, wire: Line, count: int) -> Iterator[list[Visitor]]:
    with visitors(browser, wire.url, count) as opened:
        for visitor in opened:
            begin_a_story(visitor)
        yield opened


@pytest.fixture
def visitor(browser: Any, wire: Line) -> Iterator[Visitor]:
    with in_mid_answer(browser, wire, 1) as [opened]:
        yield opened


def begin_a_story(visitor: Visitor) -> None:
    visitor.ask(STORY)
    expect(steps.bot(visitor).first).to_contain_text("story")


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


def attached(visitor: Visitor) -> Any:
    return visitor.page.locator("#box .thumbnail-item")


def unless_a_look(route: Any) -> None:
    if route.request.method == "HEAD":
        route.abort()
    else:
        route.continue_()


def whole_again(visitor: Visitor) -> None:
    expect(steps.user(visitor)).to_have_text([STORY])
    expect(steps.bot(visitor).first).to_contain_text(TOLD, timeout=40_000)
    visitor.ask("are you back")
    expect(steps.bot(visitor).filter(has_text="echo: are you back")).to_be_visible()


def lose_sight(wire: Line, *visitors: Visitor) -> None:
    wire.cut()
    for visitor in visitors:
        expect(steps.status(visitor)).to_have_text(AWAY)
        visitor.page.evaluate("window.before = true")


def renewed(wire: Line, *visitors: Visitor) -> list[float]:
    """Mends the network, and waits for the new pages; returns the seconds of sound that the old ones have played."""
    for visitor in visitors:
        visitor.page.evaluate(KEEP_PEAKS)
    wire.mend()
    for visitor in visitors:
        visitor.page.wait_for_function("!window.before")  # since Gradio's streams are dead
    return [seconds(visitor.page.evaluate("JSON.parse(sessionStorage.getItem('peaks'))")) for visitor in visitors]


def test_a_browser_that_is_offline_is_told_and_goes_on_when_it_is_back(visitor: Visitor) -> None:
    visitor.context.set_offline(True)
    expect(steps.status(visitor)).to_have_text(AWAY)
    visitor.context.set_offline(False)
    expect(steps.status(visitor)).not_to_have_text(AWAY)
    whole_heard(visitor, STORY_SECONDS)
    whole_again(visitor)


def test_a_network_that_goes_without_a_word_is_told_and_the_new_page_goes_on_with_all_that_was_written_and_said(
    browser: Any, app: App, wire: Line
) -> None:
    with visitors(browser, wire.url, 3) as everybody:
        told_nothing, told_in_time, listening = everybody
        told_nothing.page.route("**/gradio_api/queue/data*", lambda route: None)
        told_nothing.ask(FAST_STORY)
        steps.until(told_nothing, lambda: app.engine.working == 1)
        told_in_time.ask(FAST_STORY)
        expect(steps.status(told_in_time)).to_have_text("speaking")
        begin_a_story(listening)
        listening.box.fill("half a thought")
        lose_sight(wire, *everybody)
        told_nothing.page.unroute("**/gradio_api/queue/data*")
        *before, _ = renewed(wire, *reversed(everybody))
        expect(listening.box).to_have_value("half a thought")
        steps.finished(told_in_time)
        whole_heard(listening, STORY_SECONDS, before[0])
        whole_heard(told_in_time, FAST_SECONDS, before[1])
        whole_heard(told_nothing, FAST_SECONDS)
        whole_again(listening)


def test_the_new_page_speaks_to_nobody_who_has_pressed_stop_or_switched_speech_off(browser: Any, wire: Line) -> None:
    with in_mid_answer(browser, wire, 2) as both:
        stopping, muting = both
        for visitor in both:
            expect(steps.status(visitor)).to_have_text("speaking")
            visitor.page.get_by_role("button", name="Settings").first.click()
        lose_sight(wire, *both)
        steps.press(stopping, "Stop")
        muting.page.get_by_label("Speak answers").uncheck()
        renewed(wire, *both)
        for visitor in both:
            steps.finished(visitor, seconds=40)
            visitor.ask("one two three four")
            steps.finished(visitor, 2)
            steps.silent(visitor)
            # the next answer alone; a setting is not kept without a network
            assert heard(visitor) == pytest.approx(1.0, abs=0.3)


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
    lose_sight(wire, visitor)
    steps.press(visitor, "Talk")
    expect(steps.status(visitor)).to_contain_text("listening")
    wire.mend()
    expect(steps.status(visitor)).to_have_text(STUCK)
    assert visitor.page.evaluate("window.before")
    expect(visitor.page.locator("[aria-pressed=true]")).to_have_count(1)


def test_the_new_page_has_what_was_attached_and_tells_of_what_the_server_has_lost_or_does_not_tell_of(
    browser: Any, wire: Line, picture: Path, recording: Path, tmp_path: Path
) -> None:
    lost = Path(shutil.copy(picture, tmp_path / "lost.png"))
    with in_mid_answer(browser, wire, 3) as everybody:
        keeping, losing, untold = everybody
        for visitor, files in zip(everybody, ([picture, recording], [lost, recording], [picture]), strict=True):
            visitor.page.set_input_files("#box input[type=file]", files)
            expect(attached(visitor)).to_have_count(len(files))
            visitor.box.fill("what are these")
        untold.page.route("**/gradio_api/file=**", unless_a_look)
        lose_sight(wire, *everybody)
        for copy in Path(os.environ["GRADIO_TEMP_DIR"]).glob(f"*/{lost.name}"):
            copy.unlink()
        wire.mend()
        for visitor in everybody:
            visitor.page.wait_for_function("!window.before")
        for visitor, left in zip(everybody, (2, 1, 0), strict=True):
            expect(attached(visitor)).to_have_count(left)
            expect(visitor.box).to_have_value("what are these")
        for visitor in (losing, untold):
            expect(steps.status(visitor)).to_have_text(LOST)
        for visitor, media in ((keeping, "[image] [audio]"), (losing, "[audio]")):
            visitor.box.press("Enter")
            expect(steps.bot(visitor).filter(has_text=f"echo: what are these {media}")).to_be_visible()


def answered_slowly(visitor: Visitor, missed: int) -> list[Any]:
    """The first looks at the server are never answered; returns all that the page takes."""
    looks: list[Any] = []

    def slowly(route: Any) -> None:
        looks.append(route)
        if len(looks) > missed:
            route.continue_()

    visitor.page.route("**/gradio_api/app_id", slowly)
    return looks


def test_a_slow_server_does_not_take_the_page_away_in_mid_answer(browser: Any, wire: Line) -> None:
    with in_mid_answer(browser, wire, 2) as [once, twice]:
        missed = ((once, 1, answered_slowly(once, 1)), (twice, 2, answered_slowly(twice, 2)))
        once.page.route("**/gradio_api/queue/join*", lambda route: None)  # what the page then asks has to wait
        for visitor, _, _ in missed:
            visitor.page.evaluate("window.before = true")
            visitor.box.fill("half a thought")
        for visitor, count, looks in missed:
            expect(steps.bot(visitor).first).to_contain_text(TOLD, timeout=40_000)
            steps.until(visitor, lambda looks=looks, count=count: len(looks) > count)
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


def test_speech_is_heard_to_its_end_over_a_short_dropout_and_does_not_hide_that_the_page_is_stuck(
    browser: Any, app: App, wire: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.engine, "word_seconds", 0.1)  # half as long as a word is spoken
    with visitors(browser, wire.url, 2) as both:
        whole = {"body": tone(SPOKEN_SECONDS), "headers": {"X-Sample-Rate": str(RATE)}}
        having_all = both[0]
        having_all.page.route("**/gradio_api/voice/*", lambda route: route.fulfill(**whole))
        for visitor in both:
            visitor.ask(SPOKEN)
        for visitor in both:
            expect(steps.status(visitor)).to_have_text("speaking")
            miss(visitor, {1})
        wire.cut()
        wire.mend()
        assert app.engine.working == 2
        for visitor in both:
            expect(steps.status(visitor)).to_have_text(STUCK)
        for visitor in both:
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
