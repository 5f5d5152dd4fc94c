"""The page before an engine that can only read and write: what it cannot do is not offered, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from benchmarks.browser import Visitor
from omni_app.engines.base import EngineStatus
from omni_app.runner import Runner
from omni_app.settings import Settings
from tests.scripted import ScriptedEngine
from tests.ui.steps import bot, finished

pytestmark = pytest.mark.browser


class Reader(ScriptedEngine):
    """Takes text and sound, and has no voice."""

    def status(self) -> EngineStatus:
        why = "It does not speak: it has no voice."
        return replace(super().status(), modalities=frozenset({"text", "audio"}), speaks=False, voices=(), why=why)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Reader]]:
    from omni_app.ui.launch import serve

    engine = Reader()
    settings = Settings(data_dir=tmp_path_factory.mktemp("reader"), port=0)
    demo, url = serve(settings, Runner(engine, "Chosen by the test.", 4))
    yield url, engine
    demo.close()


@pytest.fixture
def visitor(browser: Any, reader: tuple[str, Reader]) -> Iterator[Visitor]:
    opened = Visitor(browser, reader[0])
    expect(opened.page.locator("#header .engine.ready")).to_be_visible()
    yield opened
    assert opened.problems == []
    opened.close()


def test_what_it_cannot_do_is_not_offered(visitor: Visitor) -> None:
    page = visitor.page
    page.get_by_text("Settings", exact=True).first.click()
    expect(page.get_by_text("System prompt")).to_be_visible()
    expect(page.get_by_text("Speak answers")).to_be_hidden()
    expect(page.locator("#voices")).to_be_hidden()
    expect(page.get_by_role("button", name="Camera")).to_be_hidden()
    expect(page.get_by_role("button", name="Talk")).to_be_visible()
    expect(page.get_by_text("Read a picture")).to_be_hidden()
    expect(page.get_by_text("Watch a clip")).to_be_hidden()
    expect(page.get_by_text("Listen to a question")).to_be_visible()
    expect(page.locator("#header")).to_contain_text("It does not speak: it has no voice.")
    expect(page.locator("#box input[type=file]")).to_have_attribute("accept", "audio/*")


def test_a_picture_is_not_taken(visitor: Visitor, picture: Path) -> None:
    visitor.page.set_input_files("#box input[type=file]", picture)
    expect(visitor.page.get_by_text("Invalid file type: teal.png. Only audio allowed.")).to_be_visible()
    expect(visitor.page.locator("#box .thumbnail-item")).to_have_count(0)


def test_a_picture_under_a_sounds_name_is_refused_and_all_stays_in_the_box(
    visitor: Visitor, reader: tuple[str, Reader], picture: Path, tmp_path: Path
) -> None:
    asked = len(reader[1].asked)
    visitor.page.set_input_files("#box input[type=file]", _named(picture, tmp_path / "teal.wav"))
    expect(visitor.page.locator("#box .thumbnail-item")).to_have_count(1)
    visitor.ask("what is this")
    expect(visitor.page.get_by_text("does not take pictures (teal.wav), only text and sound.")).to_be_visible()
    expect(visitor.box).to_have_value("what is this")
    expect(visitor.page.locator("#box .thumbnail-item")).to_have_count(1)
    assert len(reader[1].asked) == asked


def test_what_the_engine_can_do_from_now_on_is_told_with_the_next_answer_and_offered(
    visitor: Visitor, reader: tuple[str, Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = visitor.page
    camera = page.get_by_role("button", name="Camera")
    for answers, engine, says in ((1, ScriptedEngine, "text, pictures, sound and clips, and speaks."),
                                  (2, Reader, "text and sound, and does not speak.")):  # fmt: skip
        monkeypatch.setattr(reader[1], "status", lambda engine=engine: engine.status(reader[1]))
        visitor.ask("one two")
        finished(visitor, answers)
        expect(page.get_by_test_id("toast-body").filter(has_text=says)).to_have_count(1)
        expect(camera).to_be_visible(visible=engine is ScriptedEngine)
        accepted = "image/*, audio/*, video/*" if engine is ScriptedEngine else "audio/*"
        expect(page.locator("#box input[type=file]")).to_have_attribute("accept", accepted)


def test_a_slow_page_takes_up_what_was_said_once(
    visitor: Visitor, reader: tuple[str, Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last thing that an answer says, followed at once by its end: for a page that is busy with the answer."""
    page = visitor.page
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": 10})
    monkeypatch.setattr(reader[1], "status", lambda: ScriptedEngine.status(reader[1]))
    visitor.ask("one two")
    expect(page.locator("#box input[type=file]")).to_have_attribute("accept", "image/*, audio/*, video/*")


def test_an_answer_without_speech(visitor: Visitor) -> None:
    visitor.ask("one two")
    finished(visitor)
    expect(bot(visitor).first).to_have_text("echo: one two")


def _named(file: Path, name: Path) -> Path:
    name.write_bytes(file.read_bytes())
    return name
