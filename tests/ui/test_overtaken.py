"""Visitors who go on before the server has told the page of what they did last."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import gradio as gr
import pytest
from gradio import processing_utils
from playwright.sync_api import expect

from benchmarks.browser import Visitor
from omni_app.conversation import Part
from omni_app.ui import chat
from tests.ui.conftest import App
from tests.ui.steps import begin_anew, bot, converse, finished, held, press, silent, status, until, user

pytestmark = pytest.mark.browser
Visit = Callable[..., Visitor]


def test_who_has_gone_to_another_conversation_while_files_are_read_stays_there(
    visit: Visit, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_read = threading.Event()
    real = chat.ingest

    async def late(*given: Any, **named: Any) -> Part:
        await anyio.to_thread.run_sync(may_read.wait)
        return await real(*given, **named)

    visitor = visit()
    visitor.ask("first")
    finished(visitor)
    begin_anew(visitor)
    monkeypatch.setattr(chat, "ingest", late)
    visitor.page.set_input_files("#box input[type=file]", picture)
    expect(visitor.page.locator("#box .thumbnail-item")).to_have_count(1)
    visitor.ask("second")
    entries = visitor.page.locator("#history label")
    entries.filter(has_text="first").click()
    expect(user(visitor)).to_have_text(["first"])
    may_read.set()
    expect(entries).to_have_text(["second", "first"])
    expect(visitor.box).to_have_value("")
    expect(user(visitor)).to_have_text(["first"])
    silent(visitor)
    entries.filter(has_text="second").click()
    expect(bot(visitor).filter(has_text="echo: second [image]")).to_be_visible()


def test_a_question_right_after_new_conversation_begins_it(visit: Visit) -> None:
    visitor = visit()
    visitor.ask("first")
    finished(visitor)
    on_its_way = held(visitor, lambda: press(visitor, "New conversation"))
    expect(user(visitor)).to_have_count(0)
    visitor.ask("second")
    expect(bot(visitor).filter(has_text="echo: second")).to_be_visible()
    on_its_way.continue_()
    finished(visitor)
    expect(user(visitor)).to_have_text(["second"])
    entries = visitor.page.locator("#history label")
    expect(entries).to_have_text(["second", "first"])
    entries.filter(has_text="first").click()
    expect(user(visitor)).to_have_text(["first"])


def test_who_has_pressed_new_conversation_can_go_back_at_once(visit: Visit) -> None:
    visitor = visit()
    visitor.ask("first")
    finished(visitor)
    on_its_way = held(visitor, lambda: press(visitor, "New conversation"))
    expect(user(visitor)).to_have_count(0)
    expect(visitor.page.locator("#history label.selected")).to_have_count(0)
    expect(visitor.page.locator("#title")).to_be_hidden()
    on_its_way.continue_()
    visitor.page.locator("#history label").click()
    expect(user(visitor)).to_have_text(["first"])
    expect(visitor.page.locator("#title").get_by_role("textbox")).to_have_value("first")
    expect(visitor.page.locator("#history label.selected")).to_have_text("first")


def test_a_question_right_after_choosing_a_conversation_goes_there_and_is_heard(visit: Visit) -> None:
    visitor = visit()
    entries = converse(visitor, "first", "second")
    silent(visitor)
    on_its_way = held(visitor, lambda: entries.filter(has_text="first").click())
    visitor.ask("slow and more")
    expect(status(visitor)).to_have_text("speaking")
    on_its_way.continue_()
    finished(visitor, 2)
    expect(user(visitor)).to_have_text(["first", "slow and more"])
    expect(visitor.page.locator("#chat .figures").last).not_to_contain_text("stopped")
    expect(entries).to_have_text(["first", "second"])
    # Gradio itself may report a stream that it closes while the held request is on its way.
    visitor.forgive_cut_streams()


class Filing:
    """What Gradio does with the files in messages before it tells the page. One time can be made to wait."""

    def __init__(self) -> None:
        self.waits, self.may_go_on = threading.Event(), threading.Event()
        self.may_go_on.set()

    async def turn(self) -> None:
        if not self.may_go_on.is_set() and not self.waits.is_set():
            self.waits.set()
            await anyio.to_thread.run_sync(self.may_go_on.wait)


@pytest.fixture
def filing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Filing]:
    filing, move = Filing(), processing_utils.async_move_files_to_cache

    async def in_turn(data: Any, block: Any, *more: Any, **options: Any) -> Any:
        if isinstance(block, gr.Chatbot) and isinstance(data, dict) and data.get("value"):
            await filing.turn()
        return await move(data, block, *more, **options)

    monkeypatch.setattr(processing_utils, "async_move_files_to_cache", in_turn)
    yield filing
    filing.may_go_on.set()


def test_a_list_that_was_made_before_a_title_was_kept_does_not_take_its_place(visit: Visit, filing: Filing) -> None:
    visitor = visit()
    history = converse(visitor, "about apples", "about pears")
    filing.may_go_on.clear()
    visitor.page.locator("#title").get_by_role("textbox").fill("Fruit")
    renamed = held(visitor, history.filter(has_text="about apples").click)
    assert "Fruit" in (renamed.request.post_data or "")
    until(visitor, filing.waits.is_set)
    renamed.continue_()
    expect(history).to_have_text(["Fruit", "about apples"])
    filing.may_go_on.set()
    expect(bot(visitor).first).to_have_text("echo: about apples")
    visitor.page.wait_for_timeout(500)
    expect(history).to_have_text(["Fruit", "about apples"])


@pytest.mark.parametrize("last", [False, True])
def test_what_was_on_its_way_when_the_conversation_was_left_stays_behind(
    visit: Visit, filing: Filing, app: App, last: bool
) -> None:
    visitor = visit()
    visitor.ask("slow answer goes on for some time")
    expect(bot(visitor).first).to_contain_text("some" if last else "slow")
    filing.may_go_on.clear()
    filing.waits.clear()
    until(visitor, filing.waits.is_set)
    if last:
        until(visitor, lambda: app.engine.working == 0)
    begin_anew(visitor)
    visitor.page.wait_for_timeout(500)
    filing.may_go_on.set()
    visitor.page.wait_for_timeout(1500)
    expect(user(visitor)).to_have_count(0)
    expect(visitor.page.locator("#history label.selected")).to_have_count(0)
    expect(visitor.page.locator("#title")).to_be_hidden()


def test_of_two_conversations_opened_in_a_row_the_second_is_shown(visit: Visit, filing: Filing) -> None:
    visitor = visit()
    entries = converse(visitor, "first", "second")
    begin_anew(visitor)
    filing.may_go_on.clear()
    entries.filter(has_text="first").click()
    until(visitor, filing.waits.is_set)
    entries.filter(has_text="second").click()
    expect(user(visitor)).to_have_text(["second"])
    filing.may_go_on.set()
    visitor.page.wait_for_timeout(1000)
    expect(user(visitor)).to_have_text(["second"])
    expect(visitor.page.locator("#history label.selected")).to_have_text("second")
    visitor.ask("third")
    finished(visitor, 2)
    expect(user(visitor)).to_have_text(["second", "third"])


def test_a_question_that_was_left_before_the_page_was_told_of_it_is_not_heard(visit: Visit, filing: Filing) -> None:
    visitor = visit()
    filing.may_go_on.clear()
    visitor.ask("slow answer goes on")
    until(visitor, filing.waits.is_set)
    begin_anew(visitor)
    visitor.page.wait_for_timeout(500)
    filing.may_go_on.set()
    visitor.page.wait_for_timeout(1000)
    expect(user(visitor)).to_have_count(0)
    silent(visitor)
    visitor.ask("another")
    finished(visitor)
    expect(user(visitor)).to_have_text(["another"])
    expect(visitor.page.locator("#history label")).to_have_text(["another", "slow answer goes on"])


def test_a_conversation_that_is_left_while_its_last_message_is_taken_back_stays_behind(
    visit: Visit, filing: Filing
) -> None:
    visitor = visit()
    for count in (1, 2):
        visitor.ask("again")
        finished(visitor, count)
    filing.may_go_on.clear()
    press(visitor, "Undo")
    until(visitor, filing.waits.is_set)
    begin_anew(visitor)
    visitor.page.wait_for_timeout(500)
    filing.may_go_on.set()
    expect(visitor.box).to_have_value("again")
    visitor.page.wait_for_timeout(500)
    expect(user(visitor)).to_have_count(0)
    # Gradio itself may report a stream that it closes while something is held back.
    visitor.forgive_cut_streams()
