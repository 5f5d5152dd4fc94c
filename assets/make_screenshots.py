"""Take the README's screenshots of the real page with the builtin engine: `python -m assets.make_screenshots`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from benchmarks.browser import Visitor, launched
from benchmarks.talk import RunningApp, finish_answer

HERE = Path(__file__).parent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        app = RunningApp(Path(folder))
        app.wait("health")
        browser = launched(playwright, microphone=HERE / "question.wav")
        desk = Visitor(browser, app.url)
        desk.page.wait_for_timeout(1000)
        desk.page.screenshot(path=HERE / "empty.png")
        ask_with(desk, HERE / "sign.png", "What does this sign say?", 1)
        desk.page.get_by_role("button", name="New conversation").click()
        desk.page.wait_for_timeout(500)
        desk.ask("What is the capital of France?")
        finish_answer(desk, 1)
        desk.page.get_by_role("button", name="Talk", exact=True).click()
        desk.page.wait_for_timeout(4500)
        desk.page.get_by_role("button", name="Send", exact=True).click()
        finish_answer(desk, 2)
        desk.page.screenshot(path=HERE / "page.png")
        phone = Visitor(browser, app.url, viewport={"width": 390, "height": 844}, color_scheme="dark", is_mobile=True)
        ask_with(phone, HERE / "sign.png", "What does this sign say?", 1)
        phone.page.screenshot(path=HERE / "phone.png")
        app.close()


def ask_with(visitor: Visitor, file: Path, question: str, answers: int) -> None:
    visitor.page.set_input_files("#box input[type=file]", file)
    visitor.page.locator("#box .thumbnail-item").wait_for()
    visitor.ask(question)
    finish_answer(visitor, answers)


if __name__ == "__main__":
    main()
