"""The examples on the empty page: each is a real message with real files of ours, and really runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from omni_app.ui.chat import Chat, Updates

ASSETS = Path(__file__).resolve().parents[2] / "assets"
WELCOME = "## Talk to Omni\nWrite, speak, or show something. The answer comes back as text and as speech."
_EXAMPLES: list[tuple[str, str, str | None]] = [
    ("Ask in writing", "Why is the sky blue? Answer in two sentences.", None),
    ("Read a picture", "What does this sign say?", "sign.png"),
    ("Listen to a question", "", "question.wav"),
    ("Watch a clip", "What is in this clip?", "clip.mp4"),
]


def _available() -> list[tuple[str, str, list[str]]]:
    """(title, text, files) of each example whose file is there."""
    found = [(title, text, [ASSETS / file] if file else []) for title, text, file in _EXAMPLES]
    return [(title, text, [str(f) for f in files]) for title, text, files in found if all(f.exists() for f in files)]


def cards() -> list[Any]:
    """What the Chatbot shows on an empty page; the files are served from where they lie."""
    gr.set_static_paths([ASSETS])
    return [{"text": text, "display_text": title, "files": files} for title, text, files in _available()]


def chosen(chat: Chat) -> Callable[..., Updates]:
    """The handler of a click on a card: sends that example as the visitor's own message."""

    async def send(request: gr.Request, event: gr.SelectData, key: str, *wishes: Any) -> Updates:
        _, text, files = _available()[int(event.index)]
        async for update in chat.send(request, {"text": text, "files": files}, key, *wishes):
            yield update

    return send
