"""What the page does for a visitor who is quick, changes their mind or loses the server; and whether all is seen."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import expect

from benchmarks.browser import Visitor
from tests.ui.conftest import App

pytestmark = pytest.mark.browser
Visit = Callable[..., Visitor]

DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 860}}
READ = ["#header p", ".engine", "#chat .figures", "#chat .message-buttons button", "#new", ".nav-holder a"]
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
APP = """
import sys
from pathlib import Path
from omni_app.runner import Runner
from omni_app.settings import Settings
from omni_app.ui.launch import serve, stay
from tests.scripted import ScriptedEngine
settings = Settings(data_dir=Path(sys.argv[2]), port=int(sys.argv[1]))
demo, _ = serve(settings, Runner(ScriptedEngine(), "Chosen by the test.", 8))
print("up", flush=True)
stay(demo)
"""
CONTRAST = """(selector) => [...document.querySelectorAll(selector)].map((element) => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const painted = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = [];
  for (let at = element; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
  const own = getComputedStyle(element).color;
  const [high, low] = [luminance(painted(behind)), luminance(painted([...behind, own]))].sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
})"""


def status(visitor: Visitor) -> Any:
    return visitor.page.locator("#voice [role=status]")


def button(visitor: Visitor, name: str) -> Any:
    return visitor.page.get_by_role("button", name=name, exact=True).first


def finished(visitor: Visitor, answers: int = 1) -> None:
    expect(visitor.page.locator("#chat .figures")).to_have_count(answers, timeout=20_000)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "teal.png"
    Image.new("RGB", (64, 48), "teal").save(path)
    return path


def test_escape_right_after_enter_stops_the_answer(visit: Visit, app: App) -> None:
    visitor = visit()
    visitor.ask("slow long story")
    visitor.page.keyboard.press("Escape")
    expect(visitor.page.locator("#chat").locator(".figures, .alone")).to_have_count(1, timeout=20_000)
    expect(button(visitor, "Stop")).to_be_hidden()
    assert app.engine.working == 0
    assert visitor.sound() is None


def test_stop_is_offered_before_the_server_answers_and_goes_when_it_refuses(visit: Visit) -> None:
    visitor = visit()
    visitor.page.route("**/queue/join*", lambda route: (visitor.page.wait_for_timeout(500), route.continue_()))
    visitor.box.fill("x" * 100_000)
    visitor.box.press("Enter")
    expect(button(visitor, "Stop")).to_be_visible()
    expect(visitor.page.get_by_test_id("toast-body")).to_contain_text("20,000")
    expect(button(visitor, "Stop")).to_be_hidden()
    expect(status(visitor)).to_have_text("")


def test_a_stop_before_the_first_sound_has_opened_keeps_it_silent(visit: Visit) -> None:
    visitor = visit()
    heard = visitor.page.evaluate("""async () => {
      const bar = [...document.querySelectorAll('#voice, #voice *')].find((element) => element.speechPlayer);
      const player = bar.speechPlayer;
      const orders = [];
      player.renew = (order) => orders.push(order);
      const playing = player.play('gradio_api/voice/any');
      player.stop();
      await playing;
      return orders.filter((order) => order.url).length;
    }""")
    assert heard == 0


def test_an_empty_conversation_is_not_exported_and_the_page_stays(visit: Visit) -> None:
    visitor = visit()
    address = visitor.page.url
    button(visitor, "Export").click()
    expect(status(visitor)).to_contain_text("nothing to export")
    assert visitor.page.url == address
    visitor.problems[:] = [text for text in visitor.problems if "/export/" not in text]


@pytest.mark.parametrize("loss", ["Clear", "Delete"])
def test_a_loss_is_confirmed_and_a_no_leaves_everything_in_sight(visit: Visit, loss: str) -> None:
    visitor = visit()
    answers = iter([False, True])
    visitor.page.on("dialog", lambda dialog: dialog.accept() if next(answers) else dialog.dismiss())
    visitor.ask("keep me")
    finished(visitor)
    asked = visitor.page.locator("#chat [data-testid=user]")
    button(visitor, loss).click()
    visitor.page.wait_for_timeout(500)
    expect(asked).to_have_count(1)
    expect(visitor.page.get_by_text("Error", exact=True)).to_be_hidden()
    button(visitor, loss).click()
    expect(asked).to_have_count(0)


def test_a_recording_fits_a_small_phone_and_is_readable(visit: Visit) -> None:
    visitor = visit(**PHONE | {"viewport": {"width": 320, "height": 640}})
    button(visitor, "Talk").click()
    expect(status(visitor)).to_contain_text("listening", timeout=10_000)
    shown(visitor, ["#voice [data-part=talk]", "#voice [data-part=stop]", "footer"])
    assert min(visitor.page.evaluate(CONTRAST, "#voice [data-part=talk][aria-pressed=true] :is(span, path)")) > 4.5
    assert visitor.page.locator("#chat").bounding_box()["width"] > 0.9 * 320
    expect(visitor.page.locator("footer .divider:visible")).to_have_count(0)


def test_what_the_machine_has_is_readable_on_a_phone(visit: Visit, app: App) -> None:
    page = visit(**PHONE).page
    page.goto(app.url + "system")
    values = page.locator("#facts td:first-of-type")
    expect(values.filter(has_text="cores")).to_be_visible()
    assert min(value.bounding_box()["width"] for value in values.all()) > 150


@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_everything_is_on_the_screen_with_an_attachment_and_the_camera_too(
    visit: Visit, picture: Path, screen: dict[str, Any]
) -> None:
    visitor = visit(**screen)
    everything = ["#header", "#chat", "#voice .voice-bar", "#box textarea", "footer"]
    shown(visitor, everything)
    visitor.page.set_input_files("#box input[type=file]", picture)
    expect(visitor.page.locator("#box .thumbnail-item")).to_have_count(1)
    shown(visitor, [*everything, "#box .thumbnail-item"])
    button(visitor, "Camera").click()
    visitor.page.wait_for_function("document.querySelector('#voice video').videoWidth > 0")
    shown(visitor, [*everything, "#voice video", "#voice [data-part=shoot]"])
    assert visitor.page.locator("#chat").bounding_box()["height"] > 150


def shown(visitor: Visitor, selectors: list[str]) -> None:
    for selector in selectors:
        expect(visitor.page.locator(selector).first).to_be_in_viewport(ratio=0.98)
    page, window = visitor.page.evaluate("[document.documentElement.scrollHeight, window.innerHeight]")
    assert page <= window


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_icons_can_be_read(visit: Visit, scheme: str) -> None:
    visitor = visit(color_scheme=scheme)
    visitor.ask("can you read this")
    finished(visitor)
    for selector in [
        "#header p",
        ".engine",
        "#chat .figures",
        "#chat .message-buttons button",
        "#new",
        ".nav-holder a",
    ]:
        ratios = visitor.page.evaluate(CONTRAST, selector)
        assert ratios, selector
        assert min(ratios) >= 4.5, selector


@contextmanager
def process(port: int, data: Path) -> Iterator[subprocess.Popen[str]]:
    """The app in a process of its own, so that it can go away the hard way."""
    command = [sys.executable, "-c", APP, str(port), str(data)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            assert any("up" in line for line in running.stdout)
            yield running
        finally:
            running.kill()


def test_the_page_says_that_the_server_is_away_and_recovers(browser: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with process(port, tmp_path):
        visitor = Visitor(browser, f"http://127.0.0.1:{port}/")
        visitor.ask("slow long story")
        expect(visitor.page.locator("#chat [data-testid=bot]").first).to_contain_text("story", timeout=10_000)
    visitor.page.evaluate("window.before = true")
    expect(status(visitor)).to_have_text("The server cannot be reached", timeout=20_000)
    with process(port, tmp_path):
        expect(status(visitor)).to_have_text("", timeout=20_000)
        expect(button(visitor, "Stop")).to_be_hidden()
        visitor.page.wait_for_function("!window.before")  # Gradio loads the page anew
        expect(visitor.page.locator("#chat [data-testid=user]")).to_have_text(["slow long story"], timeout=20_000)
        visitor.wait_for_gradio()
        visitor.ask("are you back")
        answer = visitor.page.locator("#chat [data-testid=bot]").filter(has_text="echo: are you back")
        expect(answer).to_be_visible(timeout=20_000)
        visitor.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_app_that_is_told_to_end_keeps_what_it_was_saying(browser: Any, tmp_path: Path, number: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with process(port, tmp_path) as running:
        visitor = Visitor(browser, f"http://127.0.0.1:{port}/")
        visitor.ask("slow long story")
        expect(visitor.page.locator("#chat [data-testid=bot]").first).to_contain_text("story", timeout=10_000)
        running.send_signal(number)
        assert running.wait(20) == 0
    with process(port, tmp_path):
        visitor.page.goto(f"http://127.0.0.1:{port}/")
        expect(visitor.page.locator("#chat [data-testid=bot]").first).to_contain_text("story", timeout=20_000)
        expect(visitor.page.locator("#chat .figures")).to_contain_text("stopped")
        visitor.close()
