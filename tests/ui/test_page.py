"""One conversation on the page in a real browser, before a scripted engine: what a visitor does, sees and hears."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from benchmarks.browser import Visitor, launched
from tests.scripted import tone
from tests.ui.conftest import App
from tests.ui.steps import bot, finished, hear_whole, press, silent, status, until, user

pytestmark = pytest.mark.browser
Visit = Callable[..., Visitor]


def test_typed_question_is_answered_and_heard_without_a_gap(visit: Visit) -> None:
    hear_whole(visit(), "one two three four five six seven eight nine")


def test_speech_stays_in_the_message_to_replay_and_download(visit: Visit, tmp_path: Path) -> None:
    visitor = visit()
    visitor.ask("keep this")
    finished(visitor)
    with visitor.page.expect_download() as download:
        visitor.page.locator("#chat .bot-row + .message-buttons [aria-label=Download]").first.click()
    download.value.save_as(tmp_path / "answer.wav")
    assert (tmp_path / "answer.wav").read_bytes()[44:] == tone(0.2 * 3)


def test_stop_ends_text_sound_and_engine_work(visit: Visit, app: App) -> None:
    visitor = visit()
    sent = visitor.ask("slow long story")
    expect(bot(visitor).first).to_contain_text("story", timeout=10_000)
    expect(status(visitor)).to_have_text("speaking")
    pressed = visitor.now()
    press(visitor, "Stop")
    finished(visitor)
    visitor.page.wait_for_timeout(1500)
    sound = visitor.sound(after=sent)
    assert sound is not None
    assert sound.end - pressed < 0.3
    assert app.engine.working == 0
    assert "word" * 3 not in bot(visitor).first.inner_text()
    expect(visitor.page.locator("#chat .figures")).to_contain_text("stopped · first text")


def test_escape_stops_too(visit: Visit, app: App) -> None:
    visitor = visit()
    visitor.ask("slow long story")
    expect(bot(visitor).first).to_contain_text("story", timeout=10_000)
    visitor.page.keyboard.press("Escape")
    finished(visitor)
    silent(visitor)
    assert app.engine.working == 0


def test_new_question_interrupts_the_old_answer(visit: Visit, app: App) -> None:
    visitor = visit()
    visitor.ask("slow long story")
    expect(bot(visitor).first).to_contain_text("story", timeout=10_000)
    visitor.ask("never mind")
    finished(visitor, 2)
    expect(bot(visitor).filter(has_text="never mind")).to_be_visible()
    assert app.engine.working == 0


def test_text_only_switch_keeps_the_engine_quiet_and_is_remembered(visit: Visit, app: App) -> None:
    visitor = visit()
    visitor.page.get_by_role("button", name="Settings").first.click()
    visitor.page.get_by_label("Speak answers").uncheck()
    visitor.page.wait_for_timeout(500)
    visitor.reload()
    sent = visitor.ask("in silence")
    finished(visitor)
    assert visitor.sound(after=sent) is None
    assert app.engine.asked[-1][1].speech is False


def test_settings_reach_the_engine(visit: Visit, app: App) -> None:
    visitor = visit()
    visitor.page.get_by_role("button", name="Settings").first.click()
    visitor.page.get_by_label("Voice").click()
    visitor.page.get_by_role("option", name="high").click()
    visitor.page.get_by_label("System prompt").fill("Be a pirate.")
    visitor.ask("who are you")
    finished(visitor)
    messages, options = app.engine.asked[-1]
    assert options.voice == "high"
    assert (messages[0].role, messages[0].text) == ("system", "Be a pirate.")


def test_picture_and_sound_go_along_and_the_transcript_is_shown(
    visit: Visit, app: App, picture: Path, recording: Path
) -> None:
    visitor = visit()
    visitor.page.set_input_files("#box input[type=file]", [picture, recording])
    expect(visitor.page.locator("#box .thumbnail-item")).to_have_count(2)
    visitor.ask("what is this")
    finished(visitor)
    expect(bot(visitor).first).to_have_text("echo: what is this [image] [audio]")
    expect(visitor.page.locator("#chat .heard")).to_have_text("heard: what the recording said")
    kinds = [part.kind for part in app.engine.asked[-1][0][-1].parts]
    assert kinds == ["image", "audio", "text"]


def test_bad_file_is_refused_by_name_and_nothing_is_lost(visit: Visit, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture at all")
    visitor = visit()
    visitor.page.set_input_files("#box input[type=file]", broken)
    expect(visitor.page.locator("#box .thumbnail-item")).to_have_count(1)
    visitor.ask("look at this")
    expect(visitor.page.get_by_test_id("toast-body")).to_contain_text("broken.png")
    expect(visitor.box).to_have_value("look at this")
    expect(bot(visitor)).to_have_count(0)


def test_too_long_a_text_is_refused_with_the_limit(visit: Visit) -> None:
    visitor = visit()
    visitor.ask("x" * 100_000)
    expect(visitor.page.get_by_test_id("toast-body")).to_contain_text("20,000")
    assert len(visitor.box.input_value()) == 100_000


def test_html_is_shown_as_text_and_never_runs(visit: Visit) -> None:
    visitor = visit()
    visitor.ask("markup <img src=x onerror=window.hacked=2>")
    finished(visitor)
    expect(user(visitor).first).to_have_text("markup <img src=x onerror=window.hacked=2>")
    expect(bot(visitor).first).to_contain_text("<script>window.hacked=1</script> <b>bold</b>")
    assert visitor.page.evaluate("window.hacked") is None


def test_engine_failure_keeps_the_text_says_why_and_retry_works(visit: Visit, app: App) -> None:
    visitor = visit()
    visitor.ask("please fail in the middle")
    finished(visitor)
    expect(bot(visitor).first).to_have_text("echo: please")
    expect(visitor.page.locator("#chat .note")).to_contain_text("stopped in the middle")
    asked = len(app.engine.asked)
    press(visitor, "Retry")
    until(visitor, lambda: len(app.engine.asked) == asked + 1)
    finished(visitor)
    expect(user(visitor)).to_have_count(1)


def test_spoken_question(app: App, playwright: Any, recording: Path) -> None:
    browser = launched(playwright, microphone=recording)
    visitor = Visitor(browser, app.url)
    press(visitor, "Talk")
    expect(status(visitor)).to_contain_text("listening, 2 s", timeout=10_000)
    press(visitor, "Send")
    finished(visitor)
    expect(visitor.page.locator("#chat .heard")).to_have_text("heard: what the recording said")
    expect(bot(visitor).first).to_have_text("echo: [audio]")
    part = app.engine.asked[-1][0][-1].parts[0]
    assert part.seconds is not None
    assert 2.0 < part.seconds < 6.0
    assert visitor.problems == []
    browser.close()


def test_what_is_attached_goes_with_a_spoken_question_and_what_is_written_stays(
    app: App, playwright: Any, recording: Path, picture: Path, tmp_path: Path
) -> None:
    browser = launched(playwright, microphone=recording)
    visitor = Visitor(browser, app.url)
    attached = visitor.page.locator("#box .thumbnail-item")
    visitor.page.set_input_files("#box input[type=file]", picture)
    expect(attached).to_have_count(1)
    visitor.box.fill("half a thought")
    press(visitor, "Talk")
    expect(status(visitor)).to_contain_text("listening, 1 s", timeout=10_000)
    press(visitor, "Send")
    finished(visitor)
    assert [part.kind for part in app.engine.asked[-1][0][-1].parts] == ["image", "audio"]
    expect(attached).to_have_count(0)
    expect(visitor.box).to_have_value("half a thought")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture at all")
    visitor.page.set_input_files("#box input[type=file]", broken)
    expect(attached).to_have_count(1)
    press(visitor, "Talk")
    expect(status(visitor)).to_contain_text("listening, 1 s", timeout=10_000)
    press(visitor, "Send")
    finished(visitor, 2)
    expect(visitor.page.get_by_test_id("toast-body")).to_contain_text("broken.png")
    assert [part.kind for part in app.engine.asked[-1][0][-1].parts] == ["audio"]
    expect(attached).to_have_count(1)
    assert visitor.problems == []
    browser.close()


def test_the_two_microphones_say_what_each_is_for(visit: Visit) -> None:
    visitor = visit()
    microphone = visitor.page.locator("#box .microphone-button")
    microphone.hover()
    expect(microphone).to_have_attribute("title", re.compile("attach"))
    expect(visitor.page.get_by_role("button", name="Talk", exact=True)).to_have_attribute("title", re.compile("send"))


def test_camera_picture_is_attached(visit: Visit, app: App) -> None:
    visitor = visit()
    press(visitor, "Camera")
    expect(visitor.page.get_by_label("Camera preview")).to_be_visible()
    visitor.page.wait_for_function("document.querySelector('#voice video').videoWidth > 0")
    press(visitor, "Take picture")
    expect(visitor.page.locator("#box .thumbnail-item")).to_have_count(1)
    visitor.ask("what do you see")
    finished(visitor)
    assert [part.kind for part in app.engine.asked[-1][0][-1].parts] == ["image", "text"]


def test_examples_really_run(visit: Visit) -> None:
    visitor = visit()
    visitor.page.get_by_text("Ask in writing").click()
    finished(visitor)
    expect(bot(visitor).first).to_contain_text("echo: Why is the sky blue?")


def test_phone_width_fits_and_works(visit: Visit) -> None:
    visitor = visit(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    visitor.ask("hello from a phone")
    finished(visitor)
    width = visitor.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1]
    for name in ("Talk", "Camera"):
        expect(visitor.page.get_by_role("button", name=name, exact=True)).to_be_in_viewport()
    expect(visitor.box).to_be_in_viewport()


@pytest.mark.parametrize(("width", "height"), [(780, 390), (667, 375), (1280, 600)])
def test_a_low_window_leaves_the_chat_its_room(visit: Visit, width: int, height: int) -> None:
    visitor = visit(viewport={"width": width, "height": height})
    visitor.page.evaluate("document.querySelector('#header p').textContent = 'Why this engine answers. '.repeat(14)")
    visitor.page.wait_for_timeout(300)
    assert visitor.page.locator("#chat").bounding_box()["height"] > 150


def test_keyboard_alone_is_enough(visit: Visit, app: App) -> None:
    visitor = visit()
    visitor.page.keyboard.type("typed without a mouse")
    visitor.page.keyboard.press("Enter")
    finished(visitor)
    for _ in range(60):
        visitor.page.keyboard.press("Tab")
        if visitor.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Retry":
            break
    asked = len(app.engine.asked)
    visitor.page.keyboard.press("Enter")
    until(visitor, lambda: len(app.engine.asked) == asked + 1)
    expect(bot(visitor).first).to_have_text("echo: typed without a mouse")
    finished(visitor)


def test_page_says_which_engine_answers_and_why(visit: Visit) -> None:
    visitor = visit()
    header = visitor.page.locator("#header")
    expect(header).to_contain_text("scripted")
    expect(header).to_contain_text("Chosen by the test.")


def test_where_there_is_no_audio_worklet_speech_is_scheduled_instead(visit: Visit) -> None:
    visitor = visit()
    visitor.page.add_init_script(
        "Object.defineProperty(BaseAudioContext.prototype, 'audioWorklet', {get: () => undefined});"
    )
    visitor.reload()
    visitor.ask("one two three four")
    expect(status(visitor)).to_have_text("speaking", timeout=10_000)
    finished(visitor)
    silent(visitor)
