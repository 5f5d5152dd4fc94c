"""Recording a question with Talk in a real browser: sent, discarded, kept when it cannot be sent, nothing left open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from benchmarks.browser import Visitor
from tests.ui.conftest import App
from tests.ui.steps import button, finished, held, microphones, status

pytestmark = pytest.mark.browser
Visit = Callable[..., Visitor]


def test_a_double_click_on_talk_opens_one_microphone_and_sending_closes_it(talker: Visitor) -> None:
    button(talker, "Talk").dblclick()
    expect(status(talker)).to_contain_text("listening, 1 s", timeout=10_000)
    expect(status(talker)).to_have_attribute("aria-live", "off")
    assert microphones(talker) == 1
    button(talker, "Send").click()
    expect(status(talker)).to_have_attribute("aria-live", "polite")
    finished(talker)
    assert microphones(talker) == 0


@pytest.mark.parametrize("written", ["half a thought", "and more", ""])
def test_what_is_written_while_a_spoken_question_is_taken_stays(
    talker: Visitor, app: App, picture: Path, written: str
) -> None:
    attached = talker.page.locator("#box .thumbnail-item")
    talker.page.set_input_files("#box input[type=file]", picture)
    expect(attached).to_have_count(1)
    talker.box.fill("half a thought")
    button(talker, "Talk").click()
    expect(status(talker)).to_contain_text("listening, 1 s", timeout=10_000)
    on_its_way = held(talker, button(talker, "Send").click)
    talker.box.fill(written)
    on_its_way.continue_()
    finished(talker)
    expect(attached).to_have_count(0)
    expect(talker.box).to_have_value(written)
    talker.ask(f"{written} whole")
    finished(talker, 2)
    assert [part.kind for part in app.engine.asked[-2][0][-1].parts] == ["image", "audio"]
    assert app.engine.asked[-1][0][-1].text == f"{written} whole".strip()


def test_a_text_that_was_refused_stays_when_the_question_is_spoken_instead(talker: Visitor, picture: Path) -> None:
    attached = talker.page.locator("#box .thumbnail-item")
    talker.ask("x" * 100_000)
    expect(talker.page.get_by_test_id("toast-body")).to_contain_text("20,000")
    talker.page.set_input_files("#box input[type=file]", picture)
    expect(attached).to_have_count(1)
    button(talker, "Talk").click()
    expect(status(talker)).to_contain_text("listening, 1 s", timeout=10_000)
    button(talker, "Send").click()
    finished(talker)
    expect(attached).to_have_count(0)
    assert talker.box.input_value() == "x" * 100_000


def test_talk_and_send_at_once_send_nothing_and_say_why(talker: Visitor, app: App, picture: Path) -> None:
    asked = len(app.engine.asked)
    talker.page.set_input_files("#box input[type=file]", picture)
    expect(talker.page.locator("#box .thumbnail-item")).to_have_count(1)
    talker.box.fill("half a thought")
    talker.page.evaluate("""() => {
      const line = document.querySelector('#voice [role=status]');
      const talk = document.querySelector('#voice [data-part=talk]');
      new MutationObserver((_, observer) => {
        if (!line.textContent.startsWith('listening') || talk.ariaDisabled === 'true') return;
        observer.disconnect();
        talk.click();
      }).observe(line.parentElement, {subtree: true, childList: true, attributes: true, characterData: true});
    }""")
    button(talker, "Talk").click()
    expect(status(talker)).to_have_text("too short to send: press Talk, speak, then press Send")
    expect(button(talker, "Talk")).to_have_attribute("aria-disabled", "false")
    assert microphones(talker) == 0
    assert len(app.engine.asked) == asked
    expect(talker.box).to_have_value("half a thought")
    expect(talker.page.locator("#box .thumbnail-item")).to_have_count(1)
    button(talker, "Talk").click()
    expect(status(talker)).to_contain_text("listening, 1 s", timeout=10_000)
    button(talker, "Send").click()
    finished(talker)
    assert app.engine.asked[-1][0][-1].media[-1].seconds > 1


@pytest.mark.parametrize("by", ["Escape", "Discard"])
def test_a_recording_is_discarded_with_and_without_a_keyboard(talker: Visitor, app: App, by: str) -> None:
    asked = len(app.engine.asked)
    button(talker, "Talk").click()
    expect(status(talker)).to_contain_text("listening", timeout=10_000)
    button(talker, by).click() if by == "Discard" else talker.page.keyboard.press(by)
    expect(status(talker)).to_have_text("recording discarded")
    expect(button(talker, "Discard")).to_be_hidden()
    expect(button(talker, "Talk")).to_have_attribute("aria-disabled", "false")
    assert microphones(talker) == 0
    assert len(app.engine.asked) == asked


@pytest.mark.parametrize("by", ["Escape", "Discard"])
def test_a_recording_on_its_way_can_still_be_discarded(talker: Visitor, app: App, by: str) -> None:
    asked, waiting = len(app.engine.asked), []
    talker.page.route("**/gradio_api/utterance", lambda route: waiting.append(route))
    button(talker, "Talk").click()
    expect(status(talker)).to_contain_text("listening, 1 s", timeout=10_000)
    with talker.page.expect_request("**/gradio_api/utterance"):
        button(talker, "Send").click()
    button(talker, by).click() if by == "Discard" else talker.page.keyboard.press(by)
    expect(status(talker)).to_have_text("recording discarded")
    expect(button(talker, "Discard")).to_be_hidden()
    expect(button(talker, "Talk")).to_have_attribute("aria-disabled", "false")
    talker.ask("typed instead")
    finished(talker)
    assert len(app.engine.asked) == asked + 1


ASK_FIRST = """() => {
  const asked = navigator.mediaDevices.getUserMedia;
  navigator.mediaDevices.getUserMedia = (wanted) => new Promise((resolve, reject) => {
    window.allow = () => resolve(asked(wanted));
    window.refuse = () => reject(new DOMException('no', 'NotAllowedError'));
  });
}"""


def test_a_microphone_that_is_refused_in_mid_answer_lets_it_go_on(talker: Visitor, app: App) -> None:
    talker.page.evaluate(ASK_FIRST)
    talker.ask("slow one two three four five six seven eight nine ten")
    expect(status(talker)).to_have_text("speaking")
    button(talker, "Talk").click()
    talker.page.wait_for_function("typeof window.refuse === 'function'")
    talker.page.evaluate("window.refuse()")
    expect(status(talker)).to_have_text("speaking; the browser did not allow the microphone")
    assert app.engine.working == 1
    finished(talker)
    expect(talker.page.locator("#chat .figures")).not_to_contain_text("stopped")
    expect(status(talker)).to_have_text("the browser did not allow the microphone")
    expect(button(talker, "Talk")).to_have_attribute("aria-disabled", "false")


def test_an_answer_goes_on_until_a_recording_begins(talker: Visitor, app: App) -> None:
    talker.page.evaluate(ASK_FIRST)
    talker.ask("slow long story")
    expect(status(talker)).to_have_text("speaking")
    button(talker, "Talk").click()
    talker.page.wait_for_function("typeof window.allow === 'function'")
    talker.page.wait_for_timeout(500)
    expect(status(talker)).to_have_text("speaking")
    assert app.engine.working == 1
    talker.page.evaluate("window.allow()")
    expect(status(talker)).to_contain_text("listening", timeout=10_000)
    finished(talker)
    expect(talker.page.locator("#chat .figures")).to_contain_text("stopped")
    assert app.engine.working == 0


def test_escape_while_the_microphone_opens_leaves_nothing_open(talker: Visitor) -> None:
    talker.page.evaluate(ASK_FIRST)
    button(talker, "Talk").click()
    talker.page.wait_for_function("typeof window.allow === 'function'")
    talker.page.keyboard.press("Escape")
    expect(status(talker)).to_have_text("recording discarded")
    talker.page.evaluate("window.allow()")
    expect(button(talker, "Talk")).to_have_attribute("aria-disabled", "false")
    assert talker.page.evaluate("window.tracks.length") == 1
    assert microphones(talker) == 0


def no_network(route: Any) -> None:
    route.abort()


def full_disk(route: Any) -> None:
    route.fulfill(status=507, json={"error": "The disk is full."})


def proxy_alone(route: Any) -> None:
    route.fulfill(status=502, body="<html>Bad Gateway</html>")


FAULTS: list[tuple[Callable[[Any], None], str]] = [
    (no_network, "the server cannot be reached"),
    (full_disk, "The disk is full."),
    (proxy_alone, "the server answered 502"),
]


@pytest.mark.parametrize(("fault", "told"), FAULTS)
def test_a_recording_that_could_not_be_sent_is_kept_and_sent_again(
    talker: Visitor, app: App, fault: Callable[[Any], None], told: str
) -> None:
    asked = len(app.engine.asked)
    talker.page.route("**/utterance", fault)
    button(talker, "Talk").click()
    expect(status(talker)).to_contain_text("listening, 1 s", timeout=10_000)
    button(talker, "Send").click()
    expect(status(talker)).to_have_text(f"kept, as it could not be sent: {told}")
    assert microphones(talker) == 0
    talker.page.unroute("**/utterance")
    button(talker, "Send again").click()
    finished(talker)
    expect(button(talker, "Talk")).to_be_visible()
    assert len(app.engine.asked) == asked + 1
    assert app.engine.asked[-1][0][-1].parts[0].seconds > 1
    talker.problems[:] = [text for text in talker.problems if "/utterance" not in text]


def test_a_recording_that_the_server_cannot_put_to_the_conversation_is_kept(
    talker: Visitor, app: App, picture: Path
) -> None:
    talker.ask("where there is no way for a recording")
    finished(talker)
    about = (path for path in app.data.glob("visitors/*/*/conversation.json") if "no way for a" in path.read_text())
    media = next(about).parent / "media"
    media.rename(media.with_name("away"))
    media.touch()
    asked = len(app.engine.asked)
    talker.page.set_input_files("#box input[type=file]", picture)
    expect(talker.page.locator("#box .thumbnail-item")).to_have_count(1)
    button(talker, "Talk").click()
    expect(status(talker)).to_contain_text("listening, 1 s", timeout=10_000)
    button(talker, "Send").click()
    expect(status(talker)).to_contain_text(
        "kept, as it could not be sent: The recording could not be kept on this server (File exists)."
    )
    expect(talker.page.locator("#box .thumbnail-item")).to_have_count(1)
    assert len(app.engine.asked) == asked
    media.unlink()
    media.with_name("away").rename(media)
    button(talker, "Send again").click()
    finished(talker, 2)
    assert [part.kind for part in app.engine.asked[-1][0][-1].parts] == ["image", "audio"]
    assert app.engine.asked[-1][0][-1].media[-1].seconds > 1


def test_a_recording_that_the_server_no_longer_has_is_sent_again(talker: Visitor, app: App) -> None:
    talker.page.route("**/utterance", lambda route: route.fulfill(json={"id": "of before a restart"}))
    button(talker, "Talk").click()
    expect(status(talker)).to_contain_text("listening, 1 s", timeout=10_000)
    button(talker, "Send").click()
    expect(status(talker)).to_have_text("kept, as it could not be sent: The server no longer has this recording.")
    talker.page.unroute("**/utterance")
    button(talker, "Send again").click()
    finished(talker)
    assert app.engine.asked[-1][0][-1].media[-1].seconds > 1
    expect(button(talker, "Talk")).to_be_visible()


def test_a_recording_that_could_not_be_sent_can_be_discarded(talker: Visitor, app: App) -> None:
    asked = len(app.engine.asked)
    talker.page.route("**/utterance", no_network)
    button(talker, "Talk").click()
    expect(status(talker)).to_contain_text("listening, 1 s", timeout=10_000)
    button(talker, "Send").click()
    expect(button(talker, "Send again")).to_be_visible()
    button(talker, "Discard").click()
    expect(status(talker)).to_have_text("recording discarded")
    expect(button(talker, "Talk")).to_be_visible()
    expect(button(talker, "Discard")).to_be_hidden()
    assert len(app.engine.asked) == asked
    talker.problems[:] = [text for text in talker.problems if "/utterance" not in text]


def test_a_recording_that_cannot_begin_leaves_nothing_open(talker: Visitor) -> None:
    talker.page.evaluate("""() => {
      AudioContext.prototype.createMediaStreamSource = () => { throw new Error('it cannot be read'); };
    }""")
    button(talker, "Talk").click()
    expect(status(talker)).to_have_text("microphone: it cannot be read")
    assert talker.page.evaluate("window.tracks.length") == 1
    assert microphones(talker) == 0
    expect(button(talker, "Talk")).to_have_attribute("aria-disabled", "false")


def test_talk_stays_of_use_in_a_browser_without_sound(visit: Visit) -> None:
    visitor = visit()
    visitor.page.evaluate("() => { delete window.AudioContext; }")
    button(visitor, "Talk").click()
    expect(status(visitor)).to_have_text("microphone: AudioContext is not defined")
    expect(button(visitor, "Talk")).to_have_attribute("aria-disabled", "false")


def test_an_answer_is_stopped_before_a_recording_is_lost_that_was_kept(talker: Visitor, app: App) -> None:
    talker.page.route("**/utterance", no_network)
    button(talker, "Talk").click()
    expect(status(talker)).to_contain_text("listening, 1 s", timeout=10_000)
    button(talker, "Send").click()
    expect(button(talker, "Send again")).to_be_visible()
    talker.ask("slow long story")
    expect(status(talker)).to_have_text("speaking")
    expect(button(talker, "Stop")).to_be_visible()
    talker.page.keyboard.press("Escape")
    expect(button(talker, "Discard")).to_be_visible()
    expect(status(talker)).to_contain_text("kept, as it could not be sent")
    expect(button(talker, "Send again")).to_be_visible()
    finished(talker)
    assert app.engine.working == 0
    talker.page.keyboard.press("Escape")
    expect(button(talker, "Talk")).to_be_visible()
    talker.problems[:] = [text for text in talker.problems if "/utterance" not in text]


def test_a_recording_at_its_limit_is_sent_by_itself(talker: Visitor, app: App) -> None:
    talker.page.evaluate("document.querySelector('#voice .voice-bar').dataset.mostSeconds = 1")
    button(talker, "Talk").click()
    finished(talker)
    assert microphones(talker) == 0
    assert app.engine.asked[-1][0][-1].parts[0].seconds == pytest.approx(1.0, abs=0.1)
