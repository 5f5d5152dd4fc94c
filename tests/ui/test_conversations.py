"""Conversations as a whole, in a real browser: changed, listed, switched, kept over a reload, exported, and private."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from benchmarks.browser import Visitor
from tests.ui.conftest import App
from tests.ui.steps import begin_anew, bot, converse, finished, held, press, silent, user

pytestmark = pytest.mark.browser
Visit = Callable[..., Visitor]


def test_edit_drops_what_came_after_and_asks_again(visit: Visit) -> None:
    visitor = visit()
    visitor.ask("first")
    finished(visitor)
    visitor.ask("second")
    finished(visitor, 2)
    press(visitor, "Edit")
    visitor.page.locator("textarea.edit-textarea").fill("changed <b>")
    press(visitor, "Submit")
    finished(visitor)
    expect(user(visitor)).to_have_text(["changed <b>"])
    expect(bot(visitor).first).to_have_text("echo: changed <b>")


def test_half_an_emoji_becomes_a_question_mark_and_the_conversation_goes_on(visit: Visit) -> None:
    visitor = visit()
    typed(visitor, "#box textarea", "half \ud83d")
    visitor.box.press("Enter")
    finished(visitor)
    expect(bot(visitor).first).to_have_text("echo: half ?")
    typed(visitor, "#title textarea", "title \ud83d")
    visitor.page.locator("#title textarea").blur()
    expect(visitor.page.locator("#history")).to_contain_text("title ?")
    press(visitor, "Edit")
    typed(visitor, "textarea.edit-textarea", "other \ud83d")
    press(visitor, "Submit")
    expect(bot(visitor).first).to_have_text("echo: other ?")


def typed(visitor: Visitor, where: str, text: str) -> None:
    """As `fill`, which has no way to carry half an emoji."""
    js = """(field, text) => {
      field.focus();
      Object.getOwnPropertyDescriptor(Object.getPrototypeOf(field), 'value').set.call(field, text);
      field.dispatchEvent(new Event('input', {bubbles: true}));
    }"""
    visitor.page.locator(where).evaluate(js, text)


def test_edit_to_nothing_is_refused_and_nothing_is_lost(visit: Visit) -> None:
    visitor = visit()
    visitor.ask("first")
    finished(visitor)
    visitor.ask("second")
    finished(visitor, 2)
    press(visitor, "Edit")
    visitor.page.locator("textarea.edit-textarea").fill("  ")
    press(visitor, "Submit")
    expect(visitor.page.get_by_test_id("toast-body")).to_contain_text("would be empty")
    expect(user(visitor)).to_have_text(["first", "second"])


def test_questions_faster_than_answers_stay_in_order(visit: Visit) -> None:
    visitor = visit()
    for number in range(5):
        visitor.box.fill(f"slow question {number}")
        visitor.box.press("Enter")
        visitor.page.wait_for_timeout(200)
    expect(bot(visitor).filter(has_text="echo: slow question 4")).to_be_visible(timeout=20_000)
    asked = user(visitor).all_inner_texts()
    assert asked == sorted(asked)
    assert asked[-1] == "slow question 4"


def test_what_is_typed_before_the_server_has_taken_a_question_stays(visit: Visit) -> None:
    visitor = visit()
    visitor.box.fill("slow question")
    on_its_way = held(visitor, lambda: visitor.box.press("Enter"))
    visitor.box.fill("the next thought")
    on_its_way.continue_()
    expect(bot(visitor).filter(has_text="echo: slow question")).to_be_visible()
    expect(visitor.box).to_have_value("the next thought")
    visitor.box.press("Enter")
    expect(bot(visitor).filter(has_text="echo: the next thought")).to_be_visible()
    expect(visitor.box).to_have_value("")


def test_undo_brings_the_message_back_into_the_box_before_what_is_there(
    visit: Visit, app: App, picture: Path, recording: Path
) -> None:
    visitor = visit()
    kept = set(app.data.glob("visitors/*/*/media/*.jpg"))
    visitor.page.set_input_files("#box input[type=file]", picture)
    expect(visitor.page.locator("#box .thumbnail-item")).to_have_count(1)
    visitor.ask("take this back")
    finished(visitor)
    visitor.page.set_input_files("#box input[type=file]", recording)
    expect(visitor.page.locator("#box .thumbnail-item")).to_have_count(1)
    visitor.box.fill("the next thought")
    press(visitor, "Undo")
    expect(visitor.box).to_have_value("take this back\nthe next thought")
    expect(visitor.page.locator("#box .thumbnail-item")).to_have_count(2)
    expect(bot(visitor)).to_have_count(0)
    assert set(app.data.glob("visitors/*/*/media/*.jpg")) == kept
    visitor.box.press("Enter")
    finished(visitor)
    expect(bot(visitor).first).to_have_text("echo: take this back the next thought [image] [audio]")


@pytest.mark.parametrize("emptied", ["Clear", "Undo"])
def test_an_emptied_conversation_has_no_title_and_is_not_listed(visit: Visit, emptied: str) -> None:
    visitor = visit()
    visitor.page.on("dialog", lambda dialog: dialog.accept())
    visitor.ask("only this")
    finished(visitor)
    title = visitor.page.locator("#title").get_by_role("textbox")
    expect(title).to_have_value("only this")
    press(visitor, emptied)
    expect(user(visitor)).to_have_count(0)
    expect(visitor.page.locator("#history label")).to_have_count(0)
    expect(title).to_be_hidden()


def test_conversations_are_listed_searched_renamed_switched_and_deleted(visit: Visit) -> None:
    visitor = visit()
    history = converse(visitor, "about apples", "about pears")
    expect(history).to_have_text(["about pears", "about apples"])
    visitor.page.get_by_placeholder("Search").fill("apple")
    expect(history).to_have_text(["about apples"])
    history.first.click()
    expect(bot(visitor).first).to_have_text("echo: about apples")
    title = visitor.page.locator("#title").get_by_role("textbox")
    title.fill("Fruit")
    title.press("Enter")
    expect(history.first).to_have_text("Fruit")
    visitor.page.on("dialog", lambda dialog: dialog.accept())
    press(visitor, "Delete")
    expect(history).to_have_count(0)
    visitor.page.get_by_placeholder("Search").fill("")
    expect(history).to_have_text(["about pears"])


def test_a_search_leaves_the_open_conversation_marked(visit: Visit) -> None:
    visitor = visit()
    visitor.ask("about plums")
    finished(visitor)
    marked = visitor.page.locator("#history label.selected")
    expect(marked).to_have_text("about plums")
    visitor.page.get_by_placeholder("Search").fill("no such fruit")
    expect(visitor.page.locator("#history label")).to_have_count(0)
    said = "getComputedStyle(document.querySelector('#history > .wrap:empty'), '::after').content"
    assert visitor.page.evaluate(said) == '"Nothing found"'
    visitor.page.get_by_placeholder("Search").fill("")
    expect(marked).to_have_text("about plums")


def test_a_title_is_taken_when_its_field_is_left_for_another_conversation(visit: Visit) -> None:
    visitor = visit()
    history = converse(visitor, "about apples", "about pears")
    visitor.page.locator("#title").get_by_role("textbox").fill("Fruit")
    history.filter(has_text="about apples").click()
    expect(history).to_have_text(["Fruit", "about apples"])
    expect(bot(visitor).first).to_have_text("echo: about apples")
    expect(visitor.page.locator("#history label.selected")).to_have_text("about apples")
    visitor.ask("and plums")
    finished(visitor, 2)
    expect(history).to_have_text(["about apples", "Fruit"])


def test_switching_away_lets_the_answer_finish_unseen(visit: Visit) -> None:
    visitor = visit()
    visitor.ask("slow answer goes on")
    expect(bot(visitor).first).to_contain_text("slow")
    begin_anew(visitor)
    visitor.page.wait_for_timeout(2500)
    expect(bot(visitor)).to_have_count(0)
    visitor.page.get_by_placeholder("Search").fill("slow")
    visitor.page.locator("#history label").first.click()
    expect(bot(visitor).first).to_have_text("echo: slow answer goes on")


def test_reload_in_mid_answer_goes_on_and_keeps_everything(visit: Visit, app: App) -> None:
    visitor = visit()
    visitor.ask("slow tell me a rather longer thing while I reload")
    expect(bot(visitor).first).to_contain_text("tell", timeout=10_000)
    visitor.page.reload()
    visitor.box.wait_for()
    expect(user(visitor).first).to_contain_text("tell me")
    finished(visitor)
    expect(bot(visitor).first).to_have_text("echo: slow tell me a rather longer thing while I reload")
    expect(visitor.page.get_by_label("Play").first).to_be_visible()
    visitor.forgive_cut_streams()


def test_export_holds_json_markdown_and_media(visit: Visit, picture: Path, tmp_path: Path) -> None:
    visitor = visit()
    visitor.page.set_input_files("#box input[type=file]", picture)
    expect(visitor.page.locator("#box .thumbnail-item")).to_have_count(1)
    visitor.ask("what colour")
    finished(visitor)
    with visitor.page.expect_download() as download:
        press(visitor, "Export")
    assert download.value.suggested_filename == "what-colour.zip"
    bundle = zipfile.ZipFile(download.value.path())
    content = json.loads(bundle.read("conversation.json"))
    files = [content["messages"][0]["media"][0]["file"], content["messages"][1]["speech"]]
    assert set(files) <= set(bundle.namelist())
    assert "what colour" in bundle.read("conversation.md").decode()


def test_two_visitors_never_see_each_other(visit: Visit) -> None:
    first, second = visit(), visit()
    sent_first, sent_second = first.ask("my secret is blue"), second.ask("mine is red")
    finished(first)
    finished(second)
    assert "red" not in first.page.inner_text("#chat") + first.page.inner_text("#history")
    assert "blue" not in second.page.inner_text("#chat") + second.page.inner_text("#history")
    silent(first)
    silent(second)
    heard = first.sound(after=sent_first), second.sound(after=sent_second)
    assert [round(sound.seconds, 1) for sound in heard if sound] == [1.0, 0.8]


def test_speech_and_export_of_another_visitor_do_not_exist(visit: Visit, app: App) -> None:
    first, second = visit(), visit()
    runs: list[str] = []
    first.page.on("request", lambda request: "/voice/" in request.url and runs.append(request.url))
    first.ask("slow private words here")
    finished(first)
    key = next(path.name for path in (app.data / "visitors").glob("*/*") if "private words" in _content(path))
    for url in [runs[0], f"{app.url}gradio_api/export/{key}"]:
        assert first.context.request.get(url).ok
        assert second.context.request.get(url).status == 404
    private = next((app.data / "visitors").glob(f"*/{key}/conversation.json"))
    assert first.context.request.get(f"{app.url}gradio_api/file={private}").status == 404


def _content(folder: Path) -> str:
    path = folder / "conversation.json"
    return path.read_text() if path.exists() else ""


def test_a_tab_that_is_looked_at_again_lists_what_another_has_begun(visit: Visit, app: App) -> None:
    visitor = visit()
    visitor.ask("from the first tab")
    finished(visitor)
    other = visitor.context.new_page()
    other.goto(app.url)
    expect(other.locator("#chat [data-testid=user]")).to_have_text("from the first tab")
    other.get_by_role("button", name="New conversation").click()
    expect(other.locator("#chat [data-testid=user]")).to_have_count(0)
    box = other.locator("#box textarea")
    box.fill("from the second tab")
    box.press("Enter")
    expect(other.locator("#history label")).to_have_count(2)
    expect(visitor.page.locator("#history label")).to_have_count(1)
    visitor.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(visitor.page.locator("#history label")).to_have_text(["from the second tab", "from the first tab"])
    expect(visitor.page.locator("#history label.selected")).to_have_text("from the first tab")
