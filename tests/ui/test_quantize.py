"""The Quantize page in a real browser: choices, jobs that wait, fail and are cancelled, and one whole job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from omni_app.runner import Runner
from omni_app.server.control import ServerControl
from omni_app.settings import Settings
from omni_app.ui.quantize_plots import duration, size
from tests.scripted import ScriptedEngine
from tests.stand_in_worker import small_model, stand_in
from tests.ui.test_system import gr_secret, on_paper

LONG_MS = 60_000
JOB_MS = 240_000


@dataclass
class Visitors:
    """Fresh browsers on one app."""

    browser: Browser
    url: str
    problems: list[str] = field(default_factory=list)

    def page(self) -> Page:
        page = self.browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        page.set_default_timeout(LONG_MS)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda line: self.problems.extend([line.text] if line.type == "error" else []))
        page.on("dialog", lambda dialog: dialog.accept())
        self.open(page)
        return page

    def open(self, page: Page) -> None:
        with page.expect_response(lambda response: response.request.method == "POST"):
            page.goto(self.url + "quantize")  # the first event is sent when Gradio would forget no typing any more


@contextmanager
def visited(browser: Browser, settings: Settings) -> Iterator[Visitors]:
    from omni_app.ui.launch import serve

    demo, url = serve(settings, Runner(ScriptedEngine(), "Chosen by the test.", 8))
    visitors = Visitors(browser, url)
    known = list(browser.contexts)
    try:
        yield visitors
    finally:
        for context in browser.contexts:
            if context not in known:
                context.close()
        demo.close()
    assert visitors.problems == []


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def look(page: Page, model: Path | str) -> None:
    page.get_by_label("The model's folder").fill(str(model))
    press(page, "Look")


def begin(page: Page, model: Path, output: Path) -> None:
    look(page, model)
    expect(page.locator("#estimate")).to_contain_text("It fits on this machine")
    page.get_by_label("Folder for the result").fill(str(output))
    press(page, "Start")


def state(page: Page) -> Any:
    return page.locator("#job-state")


@pytest.mark.browser
def test_choices_change_the_estimate_and_bad_input_is_a_sentence(browser: Browser, tmp_path: Path) -> None:
    model = small_model(tmp_path / "small")
    with visited(browser, Settings(data_dir=tmp_path / "data", port=0)) as visitors:
        page = visitors.page()
        look(page, "")
        expect(page.locator("#looked [role=alert]")).to_contain_text("Name the folder of the model")
        look(page, tmp_path / "nothing")
        expect(page.locator("#looked [role=alert]")).to_contain_text("is not a model folder")
        look(page, model)
        expect(page.locator("#estimate .bytes .row")).to_have_count(2)
        expect(page.locator("#looked")).to_be_empty()
        output = page.get_by_label("Folder for the result")
        expect(output).to_have_value(str(tmp_path / "data/models/small-NVFP4A16"))
        after = page.locator("#estimate .bytes .row").nth(1).locator("b").inner_text()
        page.get_by_label("FP8, one scale a row").check()
        expect(output).to_have_value(str(tmp_path / "data/models/small-FP8_DYNAMIC"))
        expect(page.locator("#estimate .bytes .row").nth(1).locator("b")).not_to_have_text(after)
        expect(page.get_by_label("Calibration samples")).to_be_hidden()
        page.get_by_label("NVFP4 weights and activations").check()
        expect(page.get_by_label("Calibration samples")).to_be_visible()
        for part in page.locator("#parts input").all():
            part.uncheck()
        expect(page.locator("#looked [role=alert]")).to_have_text("Choose at least one part to quantize.")
        page.locator("#parts input").first.check()
        expect(page.locator("#looked")).to_be_empty()
        output.fill("/proc/result")  # where nothing is ever free
        output.press("Tab")
        expect(page.locator("#estimate [role=alert]")).to_contain_text("name an output folder on another disk")
        output.fill(str(model))
        output.press("Enter")
        expect(page.locator("#estimate")).to_contain_text("It fits on this machine")
        press(page, "Start")
        expect(page.locator("#start-answer [role=alert]")).to_contain_text("exists already")
        expect(output).to_have_value(str(model))
        expect(page.locator(".toast-body")).to_have_count(0)


@pytest.mark.browser
def test_jobs_are_the_operators_wait_fail_start_again_and_are_cancelled(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, worker = small_model(tmp_path / "small"), stand_in(tmp_path, monkeypatch)
    settings = Settings(data_dir=tmp_path / "data", port=0, operator=gr_secret("sesame"))
    with visited(browser, settings) as visitors:
        page = visitors.page()
        look(page, model)
        expect(page.locator("#looked [role=alert]")).to_contain_text("not the operator's password")
        page.get_by_label("Operator's password").fill("sesame")
        begin(page, model, tmp_path / "one")
        expect(state(page)).to_contain_text("Quantize 2 of 4: layers.0")
        expect(page.locator("#job-log textarea")).to_have_value("the stand-in is at work\n")

        other = visitors.page()
        expect(other.locator("#jobs")).to_be_hidden()
        other.get_by_label("Operator's password").fill("sesame")
        begin(other, model, tmp_path / "two")
        expect(state(other)).to_contain_text("Waiting: 1 job is before this one.")
        expect(page.locator("#job-list")).to_contain_text("queued, 1 ahead")

        visitors.open(page)
        page.get_by_label("Operator's password").fill("sesame")
        page.get_by_label("Operator's password").press("Enter")
        expect(state(page)).to_contain_text("Quantize 2 of 4: layers.0")
        press(page, "Cancel")
        expect(page.locator("#job-list")).to_contain_text("cancelled")

        expect(state(other)).to_contain_text("Quantize 2 of 4")
        expect(state(page).locator(".chip")).to_have_text("cancelled")  # it stays, though the other one runs now
        worker.end(1, error="The disk of the stand-in ran full.")
        expect(state(other)).to_contain_text("The disk of the stand-in ran full.")
        press(other, "Start again")
        expect(state(other)).to_contain_text("At work for")
        worker.end(0)
        expect(state(other).locator(".chip")).to_have_text("done")


@pytest.mark.browser
@pytest.mark.quantize
def test_a_whole_job_by_clicking_found_again_and_served(
    browser: Browser, tiny_omni: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu = on_paper(tmp_path, monkeypatch)
    with visited(browser, with_gpu) as visitors:
        page = visitors.page()
        begin(page, tiny_omni, tmp_path / "small-omni")
        expect(state(page).locator(".chip")).to_have_text("running")
        visitors.open(page)
        expect(state(page)).to_contain_text("tiny-omni to NVFP4A16")
        expect(state(page).locator(".chip")).to_have_text("done", timeout=JOB_MS)
        expect(page.locator("#report")).to_contain_text("Verified")
        expect(page.locator("#report .curve.depth polyline")).to_have_count(2)
        expect(page.locator("#before audio, #after audio").first).to_be_attached()
        with page.expect_download() as download:
            page.locator("#save").click()
        assert "| check |" in download.value.path().read_text()
        press(page, "Model card ▼")
        expect(page.locator("#card")).to_contain_text("tiny-omni-NVFP4A16")
        press(page, "Serve this")
        expect(page.locator("#job-answer")).to_contain_text("The server is starting")
        page.locator("#job-answer a").click()
        server = page.locator("#server-state [role=status]")
        expect(server).to_contain_text("ready: The start took", timeout=LONG_MS)
        assert ServerControl(with_gpu).state().model == str(tmp_path / "small-omni")
        press(page, "Stop")
        expect(server).to_contain_text("stopped: The server was stopped.", timeout=LONG_MS)


@pytest.mark.parametrize(
    ("count", "told"), [(950, "0.95 kB"), (27.5e9, "27.5 GB"), (510e6, "510 MB"), (70.52e9, "70.5 GB"), (2e12, "2 TB")]
)
def test_sizes_are_told_in_three_digits(count: float, told: str) -> None:
    assert size(count) == told


@pytest.mark.parametrize(("seconds", "told"), [(0.2, "1 s"), (89, "89 s"), (720, "12 min"), (7500, "2 h 5 min")])
def test_durations_are_told_for_people(seconds: float, told: str) -> None:
    assert duration(seconds) == told
