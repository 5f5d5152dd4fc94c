"""Leaving the page while something was said that is not sent: it is there again, or the browser asks before."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import expect

from benchmarks.browser import Visitor
from tests.ui.conftest import App
from tests.ui.steps import button, finished, microphones, status, until

pytestmark = pytest.mark.browser
FILL = """() => {
  for (let size = 2 ** 22, count = 0; size >= 2 ** 10; size /= 2) {
    try { for (;;) sessionStorage.setItem('filler ' + count++, 'x'.repeat(size)); } catch { continue; }
  }
}"""
"""Until the browser takes no second of sound any more."""


@pytest.fixture
def leaver(talker: Visitor) -> Iterator[Visitor]:
    yield talker
    talker.forgive_cut_streams()


def to_system_and_back(visitor: Visitor) -> None:
    visitor.page.get_by_role("link", name="System").click()
    visitor.page.wait_for_url("**/system*")
    visitor.page.get_by_role("link", name="Talk").click()
    visitor.wait_for_gradio()


LEAVING: list[Callable[[Visitor], None]] = [to_system_and_back, Visitor.reload]
KEPT = "kept, as the page was left before it was sent"


@pytest.mark.parametrize("leave", LEAVING)
def test_a_recording_is_kept_when_the_page_is_left(leaver: Visitor, app: App, leave: Callable[[Visitor], None]) -> None:
    asked = len(app.engine.asked)
    button(leaver, "Talk").click()
    expect(status(leaver)).to_contain_text("listening, 1 s", timeout=10_000)
    leave(leaver)
    expect(status(leaver)).to_have_text(KEPT)
    leave(leaver)
    expect(status(leaver)).to_have_text(KEPT)
    assert len(app.engine.asked) == asked
    button(leaver, "Send").click()
    finished(leaver)
    assert app.engine.asked[-1][0][-1].media[0].seconds > 1
    leave(leaver)
    expect(button(leaver, "Talk")).to_be_visible()
    expect(status(leaver)).to_have_text("")
    assert len(app.engine.asked) == asked + 1


def test_a_recording_that_was_kept_when_the_page_was_left_can_be_discarded(leaver: Visitor) -> None:
    button(leaver, "Talk").click()
    expect(status(leaver)).to_contain_text("listening, 1 s", timeout=10_000)
    leaver.reload()
    button(leaver, "Discard").click()
    expect(status(leaver)).to_have_text("recording discarded")
    leaver.reload()
    expect(button(leaver, "Talk")).to_be_visible()
    expect(status(leaver)).to_have_text("")


def test_the_browser_asks_before_a_recording_is_lost_for_which_it_has_no_room(leaver: Visitor) -> None:
    dialogs: list[str] = []
    leaver.page.on("dialog", lambda dialog: (dialogs.append(dialog.type), dialog.dismiss()))
    leaver.page.evaluate(FILL)
    button(leaver, "Talk").click()
    expect(status(leaver)).to_contain_text("listening, 1 s", timeout=10_000)
    leaver.page.get_by_role("link", name="System").click(no_wait_after=True)
    until(leaver, lambda: dialogs == ["beforeunload"])
    expect(status(leaver)).to_contain_text("listening, 2 s", timeout=10_000)
    assert microphones(leaver) == 1
    button(leaver, "Discard").click()
    leaver.page.get_by_role("link", name="System").click()
    leaver.page.wait_for_url("**/system*")
    assert dialogs == ["beforeunload"]
