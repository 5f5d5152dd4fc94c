from __future__ import annotations

from pathlib import Path

import pytest

from omni_app.conversation import Part
from omni_app.doctor import Finding
from omni_app.ui import render
from omni_app.ui.live import STOPPED_EARLY
from omni_app.ui.store import Turn
from omni_app.ui.system import findings_html


@pytest.mark.parametrize(
    "text",
    [
        "a < b and b > c",
        "AT&T",
        "<b>bold</b>",
        "<script>x</script>",
        "`<i>` stays <i>",
        "```\n<a>\n``` <a>",
        "</p>",
        "<!-- -->",
    ],
)
def test_typed_undoes_shown(text: str) -> None:
    assert render.typed(render.shown(text)) == text


def test_tags_are_escaped_outside_code_only() -> None:
    assert render.shown("<b> `<b>` 1 < 2") == r"\<b> `<b>` 1 < 2"
    assert render.shown(r"\<b>") == r"\\\<b>"
    assert render.shown("$$a<b$$ <b>") == r"$$a<b$$ \<b>"
    assert render.shown("```\n<b>\nunfinished <b>") == "```\n<b>\nunfinished <b>"


def test_one_message_a_turn_and_quiet_lines_are_escaped(tmp_path: Path) -> None:
    sound = tmp_path / "s.wav"
    sound.write_bytes(b"")
    turns = [
        Turn("user", "look", [Part("image", path=tmp_path / "gone.jpg", name="gone.jpg")], heard="<b>"),
        Turn("assistant", "a cat", speech=sound, note="<i>", figures="1 s"),
    ]
    asked, answered = render.conversation(turns)
    assert asked["content"][0] == '<span class="quiet note">1 file(s) of this message are no longer on the disk.</span>'
    assert asked["content"][-1] == '<span class="quiet heard">heard: &lt;b&gt;</span>'
    assert answered["content"][:2] == ["a cat", {"path": str(sound)}]
    assert '<span class="quiet note">&lt;i&gt;</span>' in answered["content"]


def test_failure_before_the_first_word_keeps_the_tools_of_an_answer() -> None:
    (message,) = render.conversation([Turn("assistant", note="The server is down.")])
    assert message["content"] == ['<span class="alone warning">The server is down.</span>']


def test_a_stop_that_was_wanted_is_no_warning() -> None:
    (message,) = render.conversation([Turn("assistant", note=STOPPED_EARLY)])
    assert message["content"] == ['<span class="alone">Stopped before the first word.</span>']


def test_a_question_whose_answer_was_lost_says_so_where_it_can_be_asked_again() -> None:
    asked, lost = render.conversation([Turn("user", "a")])
    assert (asked["role"], lost["role"]) == ("user", "assistant")
    assert lost["content"] == [f'<span class="alone warning">{render.LOST}</span>']


def test_likes_are_one_per_answer() -> None:
    turns = [
        Turn("user", "a"),
        Turn("assistant", "b", liked=True),
        Turn("assistant", "c"),
        Turn("assistant", "d", liked=False),
    ]
    assert render.likes(turns) == ["Like", None, "Dislike"]


def test_a_sentence_shows_its_commands_as_code_and_nothing_as_html() -> None:
    assert render.sentence("<b>: run `make serve <x>`.") == "&lt;b&gt;: run <code>make serve &lt;x&gt;</code>."


def test_every_reason_of_the_machine_is_such_a_sentence() -> None:
    assert "<code>make serve</code> builds it" in findings_html([Finding("packages", "none", "`make serve` builds it")])
