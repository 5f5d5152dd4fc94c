"""Plain sentences about a picture or a clip, made of what was really found, and frank about the rest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from omni_app.engines.builtin.look import Sight

SURE = 0.6
"""Probability from which the best guess is named without a warning; on test photographs, wrong ones stayed below."""
WORTH_TELLING = 0.4
"""Probability that the best guesses must have together to be named, with a warning."""
_HINT = 0.1

_MOST_LINES = 12
LIMITS = (
    "I cannot tell people, actions, places or how many of something there are. "
    "Qwen3-Omni can; this is only the small built-in engine."
)
_NOTHING_KNOWN = "I am not sure what it shows; nothing among the thousand kinds of things that I know fits well."
_NOTHING_EITHER = "I am not sure what it shows either."
_NO_SOUND = "It has no sound."
_NO_WORDS = "I hear no words in its sound."
_HEARD = "In its sound I hear:"
_RECORDED = "In the recording I hear:"
_NOT_RECORDED = "I hear no words in the recording."
_NO_TEXT = "I found no readable text in"
_TEXT = "The text I can read in"

_OPENINGS = (_HEARD, _NO_SOUND, _NO_WORDS, _RECORDED, _NOT_RECORDED, _TEXT, _NO_TEXT)
_OPENING = re.compile(rf"(?:1\. )?(?:{'|'.join(map(re.escape, _OPENINGS))})")
_NO_FACTS = (LIMITS, _NOTHING_KNOWN, _NOTHING_EITHER, _NO_SOUND, _NO_WORDS, _NOT_RECORDED)
_PLAINLY = tuple(
    (re.compile(pattern, re.MULTILINE), plain)
    for pattern, plain in (
        (r"^\d+\. ", ""),
        ("|".join(map(re.escape, _NO_FACTS)), ""),
        (rf"{_NO_TEXT} (?:it|its pictures)\.", ""),
        (_RECORDED, "A recording says:"),
        (_HEARD, "A clip says:"),
        (rf"{_TEXT} its pictures:", "The text in the clip:"),
        (rf"{_TEXT} it:", "A picture says:"),
        (r"(?:I see it at \d+ by \d+ pixels|The clip is [\w ]+ long), mostly ", "It is mostly "),
    )
)


def facts_of(answer: str) -> str | None:
    """What was found, out of an answer composed here; None for any other answer."""
    if not _OPENING.match(answer):
        return None
    for pattern, plain in _PLAINLY:
        answer = pattern.sub(plain, answer)
    return " ".join(answer.split())


def describe_picture(sight: Sight) -> str:
    """What answers most questions comes first: it is what gets spoken first too."""
    width, height = sight.size
    return " ".join(
        (_text(sight, "it"), _things(sight), f"I see it at {width} by {height} pixels{_colours(sight.colours)}.")
    )


def describe_clip(sight: Sight | None, seconds: float | None, transcript: str | None) -> str:
    """`sight` None: no frame could be read. `transcript` None: the clip has no sound; empty: no words were heard."""
    length = f"The clip is {_seconds(seconds)} long" if seconds else "This is a clip"
    if sight is None:
        return f"{_sound(transcript)} {length}, but I could not read a picture out of it."
    shown = (_text(sight, "its pictures"), _things(sight), f"{length}{_colours(sight.colours)}.")
    return " ".join((_sound(transcript), *shown))


def describe_recording(transcript: str) -> str:
    return f"{_RECORDED} {_quoted(transcript)}" if transcript else _NOT_RECORDED


def numbered(descriptions: Iterable[str]) -> Iterator[str]:
    """Each as soon as it comes, and the long sentence of doubt only once."""
    doubted = False
    for number, text in enumerate(descriptions, 1):
        yield f"{number}. {text.replace(_NOTHING_KNOWN, _NOTHING_EITHER) if doubted else text}"
        doubted = doubted or _NOTHING_KNOWN in text


def _colours(colours: Sequence[str]) -> str:
    return f", mostly {_listed(colours)}" if colours else ""


def _things(sight: Sight) -> str:
    guesses = [(name, probability) for name, probability in sight.things if probability >= _HINT]
    if guesses and guesses[0][1] >= SURE:
        return f"It looks most like this: {guesses[0][0]}."
    if sum(probability for _, probability in guesses) >= WORTH_TELLING:
        return f"It may show this, but I am not sure: {_listed([name for name, _ in guesses], 'or')}."
    return _NOTHING_KNOWN


def _text(sight: Sight, where: str) -> str:
    if not sight.lines:
        return f"{_NO_TEXT} {where}."
    read = ", ".join(line.text for line in sight.lines[:_MOST_LINES])
    left = len(sight.lines) - _MOST_LINES
    more = f" And {left} more lines." if left > 0 else ""
    return f"{_TEXT} {where}: {_quoted(read)}{more}"


def _sound(transcript: str | None) -> str:
    if transcript is None:
        return _NO_SOUND
    return f"{_HEARD} {_quoted(transcript)}" if transcript else _NO_WORDS


def _quoted(words: str) -> str:
    """The end of a sentence, which has its full stop once."""
    return f"“{words}”" if words.endswith((".", "!", "?", "…")) else f"“{words}”."


def _seconds(seconds: float) -> str:
    whole = max(1, round(seconds))
    minutes, rest = divmod(whole, 60)
    if not minutes:
        return f"{whole} second{'s' * (whole != 1)}"
    return f"{minutes} minute{'s' * (minutes != 1)}" + (f" {rest} second{'s' * (rest != 1)}" if rest else "")


def _listed(names: Sequence[str], last: str = "and") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"
