"""The button that signs in with Hugging Face, and out again."""

from __future__ import annotations

from typing import Any

import gradio as gr

from omni_app.hub_login import person_of

SIGN_IN = "Sign in with Hugging Face"


def sign_in_button(demo: gr.Blocks) -> None:
    """Add the button to the page that is being built."""
    button = gr.LoginButton(SIGN_IN, size="sm", scale=0, min_width=230, elem_id="sign-in")
    button.load_event_to_attach = None  # it would be public: a tool for programs
    quietly: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    demo.load(_label, None, button, **quietly)


def _label(request: gr.Request) -> str:
    person = person_of(request.request)
    return f"Sign out ({person.name})" if person else SIGN_IN
