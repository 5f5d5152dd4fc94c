"""The disk of the server is full: the page says so in words, loses nothing, and takes files again later."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from benchmarks.browser import Visitor
from tests.soak.app import running
from tests.ui import steps

pytestmark = pytest.mark.browser


def attach(visitor: Visitor, picture: Path) -> None:
    with visitor.page.expect_file_chooser() as chooser:
        visitor.page.get_by_test_id("upload-button").click()
    chooser.value.set_files(picture)


def test_a_file_is_refused_in_words_and_taken_when_there_is_room(browser: Any, picture: Path) -> None:
    with running() as app:
        visitor = Visitor(browser, app.url)
        limit = app.process.rlimit(resource.RLIMIT_FSIZE)
        app.process.rlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
        attach(visitor, picture)
        told = visitor.page.get_by_test_id("toast-body")
        expect(told).to_contain_text(
            "The file could not be kept: the disk of this server is full. Free some disk space"
        )
        expect(told).not_to_contain_text("{")
        visitor.ask("without it")
        steps.finished(visitor)
        app.process.rlimit(resource.RLIMIT_FSIZE, limit)
        attach(visitor, picture)
        expect(visitor.page.locator("#box .thumbnail-item")).to_have_count(1)
        visitor.ask("with it")
        expect(steps.bot(visitor).filter(has_text="echo: with it [image]")).to_be_visible()
        expect(steps.bot(visitor).filter(has_text="echo: without it")).to_be_visible()
        assert app.leftovers() == []
        visitor.close()


def test_what_could_not_be_changed_on_the_disk_is_told(browser: Any) -> None:
    with running() as app:
        visitor = Visitor(browser, app.url)
        visitor.page.on("dialog", lambda dialog: dialog.accept())
        visitor.ask("hello")
        steps.finished(visitor)
        limit = app.process.rlimit(resource.RLIMIT_FSIZE)
        app.process.rlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
        told = visitor.page.get_by_test_id("toast-body").filter(has_text="This conversation could not be saved")
        visitor.page.locator("#title textarea").fill("another name")
        visitor.page.locator("#title textarea").blur()
        expect(told).to_contain_text("kept until the app stops")
        visitor.page.get_by_role("button", name="Close").first.click()
        expect(told).to_have_count(0)
        steps.press(visitor, "Clear")
        expect(told).to_contain_text("kept until the app stops")
        visitor.close()
