"""A conversation as the language model reads it: text turns, with a word for what was not text."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from omni_app.conversation import Message, Part
from omni_app.engines.builtin.describe import facts_of
from omni_app.engines.builtin.generation import Turn
from omni_app.errors import BadRequest

Recall = Callable[[Path], str | None]
"""The transcript of a file that was heard before."""

_STAND_IN = {"image": "(a picture)", "audio": "(a spoken message)", "video": "(a clip)"}

_LOOKED = "I have looked at it and told you what I found."
_MOST_FACTS_CHARS = 1000


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


_NAMES = _words("picture pictures image images photo photos photograph screenshot clip clips video videos")
_POINTERS = _words("it its this that these those they them see seen show shows written")
_TELLING_CHARS = 4
_COMMON = _words(
    "about colour color colours colors describe does from have hear heard here know like mostly please read said say "
    "says tell text that there this what when where which will with would your"
)
"""Words of questions and descriptions that do not tell one picture from the rest of the world."""


def last_user_message(messages: Sequence[Message]) -> Message:
    """The message to answer. Raises BadRequest."""
    if not messages or messages[-1].role != "user":
        raise BadRequest("There is no message to answer: the last one must be from the user.")
    if not messages[-1].text.strip() and not messages[-1].media:
        raise BadRequest("The message is empty; write something, speak, or add a picture or a clip.")
    return messages[-1]


def turns(messages: Sequence[Message], words: str, default_system: str, recall: Recall) -> list[Turn]:
    """All turns, the last one saying `words`. System messages replace `default_system`.

    What was said of pictures and clips becomes one short sentence: a model this small goes on in the wording of a
    description, whatever is asked next. The facts come back in front of `words` that refer to them.
    """
    system = "\n".join(message.text for message in messages if message.role == "system").strip()
    said: list[Turn] = []
    facts: str | None = None
    for message in messages[:-1]:
        found = facts_of(message.text) if message.role == "assistant" else None
        if found is not None:
            question = said[-1]["content"] if said else ""
            is_latest = message is messages[-2]
            facts = found if _refers(words, f"{question} {found}", is_latest) else facts
        if message.role != "system":
            content = _content(message, recall) if found is None else _LOOKED
            said.append(Turn(role=message.role, content=content))
    known = textwrap.shorten(facts, _MOST_FACTS_CHARS, placeholder=" …") if facts else ""
    last = Turn(role="user", content="\n".join(filter(None, (known, words))))
    return [Turn(role="system", content=system or default_system), *said, last]


def _refers(words: str, description: str, is_latest: bool) -> bool:
    about = {word for word in _words(description) - _COMMON if len(word) >= _TELLING_CHARS}
    return bool(_words(words) & (_NAMES | about | (_POINTERS if is_latest else set())))


def user_words(message: Message, transcripts: Sequence[str]) -> str:
    """Typed text and speech as one turn; a recording beside typed text is what the text is about."""
    typed, spoken = message.text.strip(), "\n".join(filter(None, transcripts))
    if typed and spoken:
        return f"A recording says: “{spoken}”\n{typed}"
    return typed or spoken


def _content(message: Message, recall: Recall) -> str:
    if message.role == "assistant":
        return message.text
    pieces = [message.text, *(_heard_before(part, recall) for part in message.media)]
    return "\n".join(filter(None, pieces))


def _heard_before(part: Part, recall: Recall) -> str:
    known = recall(part.path) if part.kind == "audio" and part.path is not None else None
    return known or _STAND_IN[part.kind]
