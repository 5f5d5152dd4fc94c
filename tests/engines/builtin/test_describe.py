"""What is said of a picture is what was found; doubt is said, and nothing is made up."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw

from omni_app.engines.builtin.colours import colour_name, main_colours
from omni_app.engines.builtin.describe import LIMITS, describe_clip, describe_picture, numbered
from omni_app.engines.builtin.look import Line, Sight, merge

NOTHING = Sight((640, 480), (), (), ())


def sight(*things: tuple[str, float], lines: tuple[str, ...] = ()) -> Sight:
    return Sight((640, 480), ("red",), tuple(Line(text, 0.99) for text in lines), things)


def test_a_sure_guess_is_named_without_doubt() -> None:
    text = describe_picture(sight(("espresso", 0.93), ("tea cup", 0.03)))
    assert "espresso" in text
    assert "tea cup" not in text
    assert "not sure" not in text


def test_an_unsure_guess_comes_with_its_doubt() -> None:
    text = describe_picture(sight(("palace", 0.3), ("bell tower", 0.2), ("castle", 0.05)))
    assert "I am not sure: palace or bell tower." in text
    assert "castle" not in text


def test_a_weak_guess_is_not_told_at_all() -> None:
    text = describe_picture(sight(("go-kart", 0.16), ("bobsleigh", 0.15), ("barbell", 0.05)))
    assert "I am not sure what it shows" in text
    assert not any(name in text for name in ("go-kart", "bobsleigh", "barbell"))


def test_nothing_found_says_so() -> None:
    text = describe_picture(NOTHING)
    assert "I see it at 640 by 480 pixels." in text
    assert "not sure what it shows" in text
    assert "no readable text" in text


def test_text_is_quoted_as_it_was_read() -> None:
    assert "“Exit, Level 2”" in describe_picture(sight(lines=("Exit", "Level 2")))
    assert "And 3 more lines." in describe_picture(sight(lines=tuple(f"row {n}" for n in range(15))))


def test_the_limits_name_who_can() -> None:
    assert "cannot" in LIMITS
    assert "Qwen3-Omni" in LIMITS


@pytest.mark.parametrize(
    ("transcript", "said"),
    [(None, "no sound"), ("", "no words"), ("Hello there.", "“Hello there.” I"), ("Hello there", "“Hello there”. I")],
)
def test_a_clip_tells_of_its_sound(transcript: str | None, said: str) -> None:
    assert said in describe_clip(NOTHING, 61.2, transcript)
    assert "1 minute 1 second long" in describe_clip(NOTHING, 61.2, transcript)


def test_a_clip_without_readable_frames_says_so() -> None:
    assert "could not read a picture" in describe_clip(None, 5, "Hi.")


def test_doubt_about_several_is_told_at_length_once() -> None:
    one, other, third = numbered([describe_picture(NOTHING), "A cat.", describe_clip(NOTHING, 5, None)])
    assert "nothing among the thousand kinds of things" in one
    assert other == "2. A cat."
    assert "I am not sure what it shows either." in third
    assert "thousand" not in third


def test_frames_are_merged_with_each_text_once() -> None:
    merged = merge([sight(("cat", 0.8), lines=("NEWS",)), sight(("cat", 0.4), ("dog", 0.4), lines=("news", "live"))])
    assert [line.text for line in merged.lines] == ["NEWS", "live"]
    assert merged.things[0] == ("cat", pytest.approx(0.6))
    assert merged.things[1] == ("dog", pytest.approx(0.2))


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((255, 0, 0), "red"), ((0, 200, 0), "green"), ((20, 40, 220), "blue"), ((250, 220, 20), "yellow"),
        ((255, 255, 255), "white"), ((0, 0, 0), "black"), ((128, 128, 128), "grey"), ((110, 60, 20), "brown"),
        ((255, 140, 0), "orange"), ((255, 105, 180), "pink"), ((0, 0, 90), "dark blue"), ((222, 200, 170), "beige"),
        ((160, 32, 240), "purple"), ((64, 224, 208), "turquoise"),
    ],
)  # fmt: skip
def test_colours_have_everyday_names(rgb: tuple[int, int, int], name: str) -> None:
    assert colour_name(*rgb) == name


def test_main_colours_are_the_large_ones_in_order() -> None:
    image = Image.new("RGB", (200, 100), (255, 255, 255))
    ImageDraw.Draw(image).rectangle((0, 0, 69, 99), fill=(220, 20, 20))
    ImageDraw.Draw(image).rectangle((190, 90, 199, 99), fill=(20, 20, 220))
    assert main_colours(image) == ("white", "red")
