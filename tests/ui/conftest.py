"""A running page in front of a scripted engine, and real browsers to open it with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from benchmarks.browser import Visitor, chromium_path, launched
from omni_app.media.audio import write_wav
from omni_app.runner import Runner
from omni_app.settings import Settings
from tests.scripted import RATE, ScriptedEngine, tone

PATIENCE_MS = 20_000
"""A page on a busy machine is slow, which is no fault of what it shows."""

KEEP_TRACKS = """
const asked = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
window.tracks = [];
navigator.mediaDevices.getUserMedia = async (wanted) => {
  const stream = await asked(wanted);
  window.tracks.push(...stream.getTracks());
  return stream;
};"""


@pytest.fixture(scope="module")
def playwright() -> Iterator[Any]:
    """Ends with its module, because no other event loop can run in this thread until then."""
    if chromium_path() is None:
        pytest.skip("no Chromium here: sudo apt install chromium")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Any) -> Iterator[Any]:
    opened = launched(playwright)
    yield opened
    opened.close()


class App:
    """The app of one test session: its address, its engine and its folder."""

    def __init__(self, url: str, engine: ScriptedEngine, data: Path) -> None:
        self.url, self.engine, self.data = url, engine, data

    def rest(self) -> None:
        """Wait for the answers that the visitors of the test before have left: the app gives them up by itself."""
        for _ in range(600):
            if not self.engine.working:
                return
            time.sleep(0.1)
        raise AssertionError("an answer that nobody waits for is still being made after a minute")


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    from omni_app.ui.launch import serve

    data = tmp_path_factory.mktemp("data")
    engine = ScriptedEngine()
    settings = Settings(data_dir=data, port=0, max_replies=8)
    demo, url = serve(settings, Runner(engine, "Chosen by the test.", settings.max_replies))
    yield App(url, engine, data)
    demo.close()


@pytest.fixture
def visit(browser: Any, app: App) -> Iterator[Callable[..., Visitor]]:
    """Opens the page as a new visitor; at the end of the test nothing may have gone wrong in any of its consoles."""
    app.rest()
    visitors: list[Visitor] = []

    def opened(**context: Any) -> Visitor:
        visitors.append(Visitor(browser, app.url, **context))
        return visitors[-1]

    yield opened
    problems = [problem for visitor in visitors for problem in visitor.problems]
    for visitor in visitors:
        visitor.close()
    assert problems == []


@pytest.fixture
def talker(visit: Callable[..., Visitor]) -> Visitor:
    """A visitor whose open microphones and cameras can be counted."""
    visitor = visit()
    visitor.page.add_init_script(KEEP_TRACKS)
    visitor.reload()
    return visitor


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "teal.png"
    Image.new("RGB", (64, 48), "teal").save(path)
    return path


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "question.wav"
    write_wav(path, tone(3.0), RATE)
    return path
