"""Turns -> the messages of a Gradio Chatbot, one message per turn so that indexes agree."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

from omni_app.ui.live import STOPPED_EARLY, LiveReply
from omni_app.ui.store import Turn

THINKING = "…"
LOST = "The answer to this was lost: the app ended while it was made. Retry asks again."
# Code and formulas show their content as it is; everywhere else a tag would be swallowed by the sanitizer.
_CODE = re.compile(
    r"(```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|``[^\n]+?``|`[^`\n]*`|\$\$.*?\$\$|\\\[.*?\\\]|\\\(.*?\\\))", re.DOTALL
)
_TAG = re.compile(r"(\\*)<(?=[A-Za-z/!?])")


def sentence(text: str) -> str:
    """HTML of a sentence of ours, which has its commands between backticks."""
    return re.sub(r"`(.+?)`", r"<code>\1</code>", html.escape(text))


def shown(text: str) -> str:
    """Markdown in which HTML is text to be read: `<b>` appears as `<b>`, and `\\<b>` as `\\<b>`."""
    return _outside_code(text, lambda found: found[1] * 2 + r"\<")


def typed(text: str) -> str:
    """The inverse of `shown`, for text that comes back from the page's own editor."""
    return _outside_code(text, lambda found: found[1][: len(found[1]) // 2] + "<")


def _outside_code(text: str, replaced: Callable[[re.Match[str]], str]) -> str:
    pieces = _CODE.split(text)
    return "".join(piece if number % 2 else _TAG.sub(replaced, piece) for number, piece in enumerate(pieces))


def conversation(turns: list[Turn], live: LiveReply | None = None) -> list[dict[str, Any]]:
    """The whole conversation; `live` is the reply being made, shown after the kept turns."""
    messages = [_message(turn) for turn in turns]
    if live is not None and not live.done:
        if messages and live.heard and not turns[-1].heard:
            messages[-1]["content"].append(_quiet("heard", f"heard: {live.heard}"))
        messages.append({"role": "assistant", "content": [shown(live.text) or THINKING]})
    elif turns and turns[-1].role == "user":
        messages.append({"role": "assistant", "content": [_alone(LOST)]})
    return messages


def likes(turns: list[Turn]) -> list[str | None]:
    """One entry per assistant turn, as the Chatbot's `feedback_value` wants them."""
    names = {True: "Like", False: "Dislike", None: None}
    return [names[turn.liked] for turn in turns if turn.role == "assistant"]


def _message(turn: Turn) -> dict[str, Any]:
    content: list[Any] = [{"path": str(part.path)} for part in turn.media if part.path and part.path.exists()]
    if missing := len(turn.media) - len(content):
        content.append(_quiet("note", f"{missing} file(s) of this message are no longer on the disk."))
    content += [_quiet("note", f"{part.name}: {part.note}") for part in turn.media if part.note]
    if turn.text:
        content.append(shown(turn.text))
    if turn.speech is not None and turn.speech.exists():
        content.append({"path": str(turn.speech)})
    if turn.heard:
        content.append(_quiet("heard", f"heard: {turn.heard}"))
    if turn.note:
        content.append(_quiet("note", turn.note) if turn.text else _alone(turn.note))
    if turn.figures:
        content.append(_quiet("figures", turn.figures))
    return {"role": turn.role, "content": content or [THINKING]}


def _quiet(kind: str, text: str) -> str:
    """A small line of its own."""
    return f'<span class="quiet {kind}">{html.escape(text)}</span>'


def _alone(note: str) -> str:
    """All there is of an answer: it keeps the answer's tools. A stop was wanted and needs no warning."""
    return f'<span class="alone{"" if note == STOPPED_EARLY else " warning"}">{html.escape(note)}</span>'
