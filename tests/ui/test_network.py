"""The network between browser and app goes away in mid-answer: clear words, nothing lost, and it recovers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from benchmarks.browser import Visitor
from tests.soak.line import Line, line
from tests.ui import steps
from tests.ui.conftest import App

pytestmark = pytest.mark.browser
AWAY = "The server cannot be reached"
STORY = "slow long story"


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


def whole_again(visitor: Visitor) -> None:
    expect(steps.user(visitor)).to_have_text([STORY])
    expect(steps.bot(visitor).first).to_contain_text(" ".join(["word"] * 60), timeout=40_000)
    visitor.ask("are you back")
    expect(steps.bot(visitor).filter(has_text="echo: are you back")).to_be_visible()


def test_a_browser_that_is_offline_is_told_and_goes_on_when_it_is_back(visitor: Visitor) -> None:
    visitor.context.set_offline(True)
    expect(steps.status(visitor)).to_have_text(AWAY)
    visitor.context.set_offline(False)
    expect(steps.status(visitor)).not_to_have_text(AWAY)
    whole_again(visitor)


def test_a_network_that_goes_without_a_word_is_told_and_the_page_comes_back_with_what_was_being_written(
    visitor: Visitor, wire: Line
) -> None:
    wire.cut()
    visitor.box.fill("half a thought")
    expect(steps.status(visitor)).to_have_text(AWAY)
    visitor.page.evaluate("window.before = true")
    wire.mend()
    visitor.page.wait_for_function("!window.before")  # a new page, since Gradio's streams are dead
    expect(visitor.box).to_have_value("half a thought")
    whole_again(visitor)
