"""The page in front of the vllm-omni engine, which talks over HTTP to a second app that speaks the same dialect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from benchmarks.browser import Visitor
from omni_app import engines
from omni_app.runner import Runner
from omni_app.settings import Settings
from tests.ui.conftest import App
from tests.ui.steps import bot, finished, hear_whole, press, status, until

pytestmark = pytest.mark.browser
ASSETS = Path(__file__).parents[2] / "assets"


@pytest.fixture(scope="module")
def remote(app: App, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an app whose engine is the other app's API."""
    from omni_app.ui.launch import serve

    settings = Settings(endpoint=app.url, data_dir=tmp_path_factory.mktemp("remote"), port=0)
    spec, because = engines.choose(settings)
    demo, url = serve(settings, Runner(spec.create(settings), because, 4))
    yield url
    demo.close()


@pytest.fixture
def visitor(browser: Any, remote: str) -> Iterator[Visitor]:
    opened = Visitor(browser, remote)
    expect(opened.page.locator("#header .engine.ready")).to_be_visible(timeout=30_000)
    yield opened
    assert opened.problems == []
    opened.close()


def test_answer_and_speech_come_through_whole(visitor: Visitor) -> None:
    hear_whole(visitor, "one two three four")


def test_header_names_the_remote_model(visitor: Visitor) -> None:
    expect(visitor.page.locator("#header .engine")).to_contain_text("vllm-omni")
    expect(visitor.page.locator("#header .engine")).to_contain_text("echo")


def test_picture_sound_and_clip_travel(visitor: Visitor, app: App) -> None:
    files = [ASSETS / name for name in ("sign.png", "question.wav", "clip.mp4")]
    visitor.page.set_input_files("#box input[type=file]", files)
    expect(visitor.page.locator("#box .thumbnail-item")).to_have_count(3)
    visitor.ask("all three")
    finished(visitor)
    kinds = [part.kind for part in app.engine.asked[-1][0][-1].parts]
    assert kinds == ["image", "audio", "video", "text"]


def test_stop_reaches_the_far_engine(visitor: Visitor, app: App) -> None:
    visitor.ask("slow long story")
    expect(status(visitor)).to_have_text("speaking", timeout=10_000)
    press(visitor, "Stop")
    finished(visitor)
    until(visitor, lambda: app.engine.working == 0)


def test_failure_of_the_far_engine_is_told_and_the_text_stays(visitor: Visitor) -> None:
    visitor.ask("please fail in the middle")
    finished(visitor)
    expect(bot(visitor).first).to_have_text("echo: please")
    expect(visitor.page.locator("#chat .note")).to_contain_text("stopped in the middle")


def test_no_server_is_said_in_the_answer_and_retry_is_offered(
    browser: Any, tmp_path: Path, unused_address: str
) -> None:
    from omni_app.ui.launch import serve

    settings = Settings(endpoint=unused_address, data_dir=tmp_path, port=0)
    spec, because = engines.choose(settings)
    engine = spec.create(settings)
    demo, url = serve(settings, Runner(engine, because, 4))
    opened = Visitor(browser, url)
    opened.ask("anybody there")
    expect(opened.page.locator("#chat .alone")).to_be_visible(timeout=60_000)
    expect(opened.page.get_by_role("button", name="Retry").first).to_be_visible()
    expect(opened.page.locator("#chat [data-testid=user]")).to_have_text("anybody there")
    opened.close()
    demo.close()
