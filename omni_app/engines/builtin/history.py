"""A conversation as the language model reads it: text turns, with a word for what was not text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from omni_app.conversation import Message, Part
from omni_app.engines.builtin.generation import Turn
from omni_app.errors import BadRequest

Recall = Callable[[Path], str | None]
"""The transcript of a file that was heard before."""

_STAND_IN = {"image": "(a picture)", "audio": "(a spoken message)", "video": "(a clip)"}


def last_user_message(messages: Sequence[Message]) -> Message:
    """The message to answer. Raises BadRequest."""
    if not messages or messages[-1].role != "user":
        raise BadRequest("There is no message to answer: the last one must be from the user.")
    if not messages[-1].text.strip() and not messages[-1].media:
        raise BadRequest("The message is empty; write something, speak, or add a picture or a clip.")
    return messages[-1]


def turns(messages: Sequence[Message], words: str, default_system: str, recall: Recall) -> list[Turn]:
    """All turns, the last one saying `words`. System messages replace `default_system`."""
    system = "\n".join(message.text for message in messages if message.role == "system").strip()
    earlier = [message for message in messages[:-1] if message.role != "system"]
    said = [Turn(role=message.role, content=_content(message, recall)) for message in earlier]
    return [Turn(role="system", content=system or default_system), *said, Turn(role="user", content=words)]


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
