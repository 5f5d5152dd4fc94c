"""The whole house with its real small models: a browser types, speaks, shows, and the answers are listened to."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from benchmarks.browser import Visitor, launched
from omni_app import engines
from omni_app.engines.builtin.listen import Listener
from omni_app.media import Limits, ingest
from omni_app.media.video import sound
from omni_app.runner import Runner
from omni_app.settings import Settings
from tests.ui.steps import bot, finished, press, silent, status

pytestmark = [pytest.mark.browser, pytest.mark.models]

ASSETS = Path(__file__).parents[2] / "assets"


@pytest.fixture(scope="module")
def builtin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from omni_app.ui.launch import serve

    settings = Settings(engine="builtin", data_dir=tmp_path_factory.mktemp("builtin"), port=0)
    spec, because = engines.choose(settings)
    demo, url = serve(settings, Runner(spec.create(settings), because, 4))
    yield url
    demo.close()


@pytest.fixture
def visitor(browser: Any, builtin: str) -> Iterator[Visitor]:
    opened = Visitor(browser, builtin)
    expect(opened.page.locator("#header .engine.ready")).to_be_visible(timeout=120_000)
    yield opened
    assert opened.problems == []
    opened.close()


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def attach(visitor: Visitor, file: Path) -> None:
    visitor.page.set_input_files("#box input[type=file]", file)
    expect(visitor.page.locator("#box .thumbnail-item")).to_have_count(1)


def test_typed_question_is_answered_in_words_and_in_the_same_words_aloud(visitor: Visitor, tmp_path: Path) -> None:
    sent = visitor.ask("What is the capital of France?")
    finished(visitor, seconds=120)
    silent(visitor, seconds=120)
    answer = bot(visitor).first.inner_text()
    assert "Paris" in answer
    played = visitor.sound(after=sent)
    assert played is not None
    assert played.seconds > 0.8
    with visitor.page.expect_download() as download:
        visitor.page.locator("#chat .bot-row + .message-buttons [aria-label=Download]").first.click()
    download.value.save_as(tmp_path / "answer.wav")
    kept = ingest(tmp_path / "answer.wav", name="answer.wav", into=tmp_path, limits=Limits.of(Settings()))
    with ThreadPoolExecutor(1) as outside_playwrights_loop:
        part = outside_playwrights_loop.submit(asyncio.run, kept).result()
    assert part.path is not None
    said = words(Listener().transcribe(part.path))
    assert "paris" in said
    assert len(set(words(answer)) & set(said)) >= 0.5 * len(set(words(answer)))


def test_spoken_question_is_understood(playwright: Any, builtin: str) -> None:
    browser = launched(playwright, microphone=ASSETS / "question.wav")
    visitor = Visitor(browser, builtin)
    expect(visitor.page.locator("#header .engine.ready")).to_be_visible(timeout=120_000)
    press(visitor, "Talk")
    expect(status(visitor)).to_contain_text("listening, 4 s", timeout=15_000)
    press(visitor, "Send")
    finished(visitor, seconds=120)
    heard = words(visitor.page.locator("#chat .heard").inner_text())
    assert {"largest", "planet", "solar", "system"} <= set(heard)
    assert len(bot(visitor).first.inner_text()) > 3
    assert visitor.problems == []
    browser.close()


def test_picture_is_read(visitor: Visitor) -> None:
    attach(visitor, ASSETS / "sign.png")
    visitor.ask("What does this sign say?")
    finished(visitor, seconds=120)
    expect(bot(visitor).first).to_contain_text("HARBOUR FERRY")
    expect(bot(visitor).first).to_contain_text("9:30")


def test_clip_is_watched_and_heard(visitor: Visitor) -> None:
    attach(visitor, ASSETS / "clip.mp4")
    visitor.ask("What is in this clip?")
    finished(visitor, seconds=120)
    answer = bot(visitor).first.inner_text()
    assert "HARBOUR FERRY" in answer
    heard = words(answer + visitor.page.locator("#chat").inner_text())
    assert {"ferry", "island"} <= set(heard)


def test_stop_silences_the_real_voice(visitor: Visitor) -> None:
    sent = visitor.ask("Tell me a long story about a fox and a river.")
    expect(status(visitor)).to_have_text("speaking", timeout=30_000)
    pressed = visitor.now()
    press(visitor, "Stop")
    finished(visitor, seconds=120)
    visitor.page.wait_for_timeout(1000)
    played = visitor.sound(after=sent)
    assert played is not None
    assert played.end - pressed < 0.3


def test_the_clip_of_the_examples_has_sound(tmp_path: Path) -> None:
    assert sound(ASSETS / "clip.mp4", tmp_path) is not None
