"""A real Chromium in front of a running app, with a meter on what it plays."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Playwright, sync_playwright

METER = Path(__file__).with_name("meter.js")
AUDIBLE = 0.01
"""Peak amplitude, of 1.0, above which a 10 ms window counts as sound."""
WINDOW_SECONDS = 0.01
TAKEN_OVER = """() => {
  const told = (path) => performance.getEntriesByType('resource').filter(({name}) => name.includes(path)).length;
  return told('/run/predict') > 1 && told('/queue/data') > 0;
}"""
"""The page has been answered what it asks when it opens: its settings and the engine's state, and the conversation."""
CUT = ("AbortError", "Connection errored", "signal is aborted")
"""What Gradio itself reports of the streams that end with a page."""
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]  # fmt: skip


def chromium_path() -> str | None:
    """The headless shell first, the same engine without the windows that a headless Chromium draws for nobody."""
    known = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, known)), None)


def launched(playwright: Playwright, microphone: Path | None = None) -> Browser:
    """Headless Chromium; `microphone` is a WAV file that its fake microphone plays once."""
    flags = [*FLAGS, f"--use-file-for-fake-audio-capture={microphone}%noloop"] if microphone else FLAGS
    return playwright.chromium.launch(executable_path=chromium_path(), args=flags)


@contextlib.contextmanager
def chromium(microphone: Path | None = None) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = launched(playwright, microphone)
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True, slots=True)
class Sound:
    """What a page has played: start and end in the page's `performance.now()` seconds, and the silences in between."""

    start: float
    end: float
    gaps: tuple[tuple[float, float], ...]
    """(second after the start, length in seconds) of every silence inside."""

    @property
    def longest_gap(self) -> float:
        return max((length for _, length in self.gaps), default=0.0)

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Visitor:
    """One browser context (own cookies, own storage) with one tab on the app."""

    def __init__(self, browser: Browser, url: str, **context: Any) -> None:
        self.context: BrowserContext = browser.new_context(**({"viewport": {"width": 1280, "height": 860}} | context))
        self.context.grant_permissions(["microphone", "camera"], origin=url.rstrip("/"))
        self.problems: list[str] = []
        self.page: Page = self.context.new_page()
        self.page.add_init_script(path=METER)
        self.page.on("pageerror", lambda error: self.problems.append(f"pageerror: {error}"))
        self.page.on("console", lambda line: self.problems.extend([_told(line)] if line.type == "error" else []))
        self.page.set_default_timeout(15_000)
        self.page.goto(url)
        self.wait_for_gradio()

    def reload(self) -> None:
        """Not in mid-answer: the page would listen on."""
        self.page.reload()
        self.wait_for_gradio()

    def wait_for_gradio(self) -> None:
        """Until the page has its settings and its conversation. What is typed or chosen before, Gradio may forget."""
        self.page.wait_for_function(TAKEN_OVER)
        self.box.wait_for()
        self.forgive_cut_streams()

    def forgive_cut_streams(self) -> None:
        """For who has left a page while Gradio listened to the server."""
        self.problems[:] = [text for text in self.problems if not any(known in text for known in CUT)]

    @property
    def box(self) -> Any:
        return self.page.locator("#box textarea")

    def ask(self, text: str) -> float:
        """Type and send; returns the page's clock, in seconds, at the moment of sending."""
        self.box.click()
        self.box.fill(text)
        sent = self.now()
        self.box.press("Enter")
        return sent

    def now(self) -> float:
        return float(self.page.evaluate("performance.now()")) / 1000

    def answers(self) -> list[str]:
        return [text.strip() for text in self.page.locator("#chat [data-testid=bot]").all_inner_texts()]

    def sound(self, after: float = 0.0) -> Sound | None:
        """What has been played since `after` (page clock, seconds); None when nothing was audible."""
        return analysed(self.page.evaluate("window.__peaks"), after)

    def close(self) -> None:
        self.context.close()


def _told(line: ConsoleMessage) -> str:
    return f"{line.text} ({line.location.get('url', '')})"


def analysed(peaks: list[dict[str, Any]], after: float = 0.0) -> Sound | None:
    if not peaks:
        return None
    offset = min(peak["now"] / 1000 - peak["contextTime"] for peak in peaks)
    windows = sorted(
        (peak["time"] + offset + index * WINDOW_SECONDS, value > AUDIBLE)
        for peak in peaks
        for index, value in enumerate(peak["values"])
    )
    windows = [window for window in windows if window[0] >= after]
    loud = [index for index, (_, audible) in enumerate(windows) if audible]
    if not loud:
        return None
    inside = windows[loud[0] : loud[-1] + 1]
    start, end = inside[0][0], inside[-1][0] + WINDOW_SECONDS
    runs = [list(run) for audible, run in groupby(inside, key=lambda window: window[1]) if not audible]
    return Sound(start, end, tuple((run[0][0] - start, len(run) * WINDOW_SECONDS) for run in runs))
