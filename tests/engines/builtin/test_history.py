"""What the language model reads of answers about pictures and clips: that they were given, and facts when asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from omni_app.conversation import Message, Part
from omni_app.engines.builtin.describe import LIMITS, describe_clip, describe_picture, describe_recording, numbered
from omni_app.engines.builtin.history import turns
from omni_app.engines.builtin.look import Line, Sight

SIGN = Sight((960, 640), ("blue", "white"), (Line("HARBOUR FERRY", 0.99), Line("to the island: 9:30", 0.99)), ())
PICTURE = Part("image", path=Path("sign.png"))
LOOKED = (
    Message.of("user", "What does the sign say?", PICTURE),
    Message.of("assistant", f"{describe_picture(SIGN)}\n\n{LIMITS}"),
)
BRIEFLY = ["What does the sign say?\n(a picture)", "I have looked at it and told you what I found."]
ITALY = (Message.of("user", "What is the capital of Italy?"), Message.of("assistant", "It is Rome."))
FACTS = "A picture says: “HARBOUR FERRY, to the island: 9:30”. It is mostly blue and white."


def read(*messages: Message, words: str) -> list[str]:
    """What the model reads after the system prompt."""
    found = turns([*messages, Message.of("user", words)], words, "Be kind.", lambda _: None)
    return [turn["content"] for turn in found[1:]]


@pytest.mark.parametrize(
    "words", ["What is the capital of Italy?", "Name three fruits.", "Tell me a story.", "What colour is the sky?"]
)
def test_a_new_subject_is_not_answered_in_the_wording_of_a_description(words: str) -> None:
    assert read(*LOOKED, words=words) == [*BRIEFLY, words]


@pytest.mark.parametrize(
    "words", ["What colour is it?", "When does the ferry leave?", "What is in the picture?", "Who made that sign?"]
)
def test_a_question_about_the_picture_comes_with_its_facts(words: str) -> None:
    assert read(*LOOKED, words=words) == [*BRIEFLY, f"{FACTS}\n{words}"]


def test_later_it_means_something_else_but_the_picture_is_still_known_by_name() -> None:
    said = [message.text for message in ITALY]
    assert read(*LOOKED, *ITALY, words="Is it large?") == [*BRIEFLY, *said, "Is it large?"]
    assert read(*LOOKED, *ITALY, words="And the picture?") == [*BRIEFLY, *said, f"{FACTS}\nAnd the picture?"]


def test_the_latest_of_several_pictures_is_meant() -> None:
    other = Sight((10, 10), ("red",), (), (("cat", 0.9),))
    later = (Message.of("user", "And here?", PICTURE), Message.of("assistant", describe_picture(other)))
    assert (
        read(*LOOKED, *later, words="What is it?")[-1] == "It looks most like this: cat. It is mostly red.\nWhat is it?"
    )


@pytest.mark.parametrize(
    ("sight", "transcript", "facts"),
    [
        (
            SIGN,
            "Hello there.",
            "A clip says: “Hello there.” The text in the clip: “HARBOUR FERRY, to the island: 9:30”. "
            "It is mostly blue and white.",
        ),
        (Sight((10, 10), ("red",), (), ()), "", "It is mostly red."),
        (Sight((10, 10), ("red",), (), ()), None, "It is mostly red."),
    ],
)
def test_of_a_clip_only_what_was_found_is_told(sight: Sight, transcript: str | None, facts: str) -> None:
    said = f"{describe_clip(sight, 61.0, transcript)}\n\n{LIMITS}"
    asked = (Message.of("user", "", Part("video", path=Path("clip.mp4"))), Message.of("assistant", said))
    assert read(*asked, words="What is that?")[-1] == f"{facts}\nWhat is that?"


def test_of_several_each_fact_is_told_without_its_number() -> None:
    nothing = describe_picture(Sight((10, 10), ("red",), (), ()))
    said = "\n\n".join([*numbered([describe_recording("Good morning."), nothing, nothing]), LIMITS])
    asked = (Message.of("user", "What is this?", PICTURE), Message.of("assistant", said))
    facts = "A recording says: “Good morning.” It is mostly red. It is mostly red."
    assert read(*asked, words="What is that?")[-1] == f"{facts}\nWhat is that?"


def test_the_facts_of_a_long_clip_leave_room_for_the_question() -> None:
    said = describe_clip(SIGN, 600.0, "So it goes on and on. " * 500)
    asked = (Message.of("user", "", Part("video", path=Path("clip.mp4"))), Message.of("assistant", said))
    last = read(*asked, words="What was said in the clip?")[-1]
    assert last.startswith("A clip says: “So it goes on and on.")
    assert last.endswith("…\nWhat was said in the clip?")
    assert len(last) < 1100


def test_a_description_by_another_engine_stays() -> None:
    other = (LOOKED[0], Message.of("assistant", "A blue sign of a ferry."))
    assert read(*other, words="Thanks") == ["What does the sign say?\n(a picture)", "A blue sign of a ferry.", "Thanks"]
