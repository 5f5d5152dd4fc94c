"""The page: which widgets there are, where they sit, and which handler each event calls."""

from __future__ import annotations

import dataclasses
import functools
import html
import inspect
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components.navbar import Navbar
from gradio.events import api

from omni_app.conversation import Kind
from omni_app.engines.base import EngineStatus
from omni_app.runner import Runner
from omni_app.ui import examples
from omni_app.ui.blocks import Blocks
from omni_app.ui.chat import AUTOMATIC, SILENCE, Chat, Wishes
from omni_app.ui.confirm import confirmed
from omni_app.ui.render import sentence
from omni_app.ui.sign_in import sign_in_button
from omni_app.ui.tools import Ask

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("player.js", "recorder.js", "left.js", "server.js", "hands_free.js", "voice.js")
BROWSER_SECRET = "omni-app"  # obfuscates what the browser keeps; only settings and ids are kept there
CONVERSATION = ("key", "chat", "voice", "history", "title", "box", "header", "voice_name", "timer")
"""The widgets that a handler of `Chat` may update; with `status` it has those of `STATUS` brought up to date."""
STATUS = ("header", "timer", "voice_name", "box")
MEDIA: tuple[Kind, ...] = ("image", "audio", "video")
DEFAULTS = Wishes()
WISHES = tuple(field.name for field in dataclasses.fields(Wishes))
CONFIRM_DELETE = confirmed("'Delete this conversation and its files?'", "key")
HAND = "(value) => document.querySelector('#voice .voice-bar').dispatchEvent(new CustomEvent('%s', {detail: value}))"
DRAFT = "() => document.querySelector('#voice .voice-bar').draft"
TELL = "() => document.querySelector('#voice .voice-bar').dispatchEvent(new Event('%s'))"
# Set before the server is asked, so that a question asked meanwhile goes where one has gone.
CHOSEN_KEY = "(key) => key"
RANDOM = "crypto.getRandomValues(new Uint8Array(16))"
NEW_KEY = f"Array.from({RANDOM}, (byte) => byte.toString(16).padStart(2, '0')).join('')"
BLANK = f"() => [{NEW_KEY}, [], null, {{__type__: 'update', visible: false}}]"
LATEX: list[dict[str, str | bool]] = [
    {"left": left, "right": right, "display": display}
    for left, right, display in [("$$", "$$", True), ("\\[", "\\]", True), ("\\(", "\\)", False)]
]


class Page:
    """The widgets by name, so that handlers can speak of them without holding them."""

    def __init__(self, chat: Chat, runner: Runner, ask: Ask, sign_in: bool = False) -> None:
        self._sign_in = sign_in
        self._chat = chat
        self._runner = runner
        self._ask = ask
        self._widgets: dict[str, Any] = {}

    def build(self) -> gr.Blocks:
        demo: gr.Blocks
        with Blocks(
            title="Omni: talk to Qwen3-Omni", fill_height=True, fill_width=True, analytics_enabled=False,
            delete_cache=(3600, 86400),
        ) as demo:  # fmt: skip
            Navbar(main_page_name="Talk")
            self._sidebar()
            self._conversation(demo)
            self._chat_events(demo)
            self._settings_events(demo)
            self._status_events(demo)
            api(self._ask, api_name="ask", concurrency_limit=None, queue=False)
        return demo

    def _sidebar(self) -> None:
        add = self._widgets
        with gr.Sidebar(label="Conversations", width=300):
            add["new"] = gr.Button("New conversation", variant="primary", elem_id="new")
            add["query"] = gr.Textbox(
                placeholder="Search", label="Search conversations", show_label=False, container=False, elem_id="query"
            )
            add["history"] = gr.Radio([], label="Conversations", elem_id="history", show_label=False, container=False)
            add["title"] = gr.Textbox(
                label="Title", placeholder="Title", show_label=False, container=False, visible=False, max_length=60,
                elem_id="title",
            )  # fmt: skip
            with gr.Row(elem_id="keep"):
                add["export"] = gr.Button("Export", size="sm", elem_id="export", min_width=80)
                add["delete"] = gr.Button("Delete", size="sm", variant="stop", elem_id="delete", min_width=80)
            with gr.Accordion("Settings", open=False, elem_id="settings"):
                self._wishes()

    def _wishes(self) -> None:
        add = self._widgets
        add["speech"] = gr.Checkbox(DEFAULTS.speech, label="Speak answers", elem_id="speech")
        add["voice_name"] = gr.Dropdown(
            [AUTOMATIC], value=DEFAULTS.voice_name, label="Voice", allow_custom_value=True, elem_id="voices"
        )
        add["max_tokens"] = gr.Slider(
            0, 2048, value=DEFAULTS.max_tokens, step=32, label="Longest answer (tokens; 0 is automatic)"
        )
        add["temperature"] = gr.Slider(0.0, 1.5, value=DEFAULTS.temperature, step=0.1, label="Temperature")
        add["system_prompt"] = gr.Textbox(
            DEFAULTS.system_prompt, label="System prompt", lines=3, placeholder="Who should answer, and how"
        )

    def _conversation(self, demo: gr.Blocks) -> None:
        add = self._widgets
        # Which conversation this tab shows; it survives a reload, and a restart of the server under an open page.
        add["key"] = gr.BrowserState("", storage_key="omni-conversation", secret=BROWSER_SECRET)
        with gr.Row(elem_classes="top"):
            add["header"] = gr.HTML(self._header(), elem_id="header")
            if self._sign_in:
                sign_in_button(demo)
        add["chat"] = gr.Chatbot(
            show_label=False, label="Conversation", elem_id="chat", height="auto",
            editable="user", group_consecutive_messages=False, buttons=["copy", "copy_all"], layout="bubble",
            allow_tags=False, latex_delimiters=LATEX, placeholder=examples.WELCOME, examples=examples.cards(),
            feedback_options=("Like", "Dislike"),
        )  # fmt: skip
        add["timer"] = gr.Timer(1.0)
        add["voice"] = gr.HTML(
            value=SILENCE,
            html_template=(STATIC / "voice.html").read_text(),
            js_on_load=_script(),
            elem_id="voice",
            padding=False,
        )
        add["box"] = gr.MultimodalTextbox(
            file_types=list(MEDIA), file_count="multiple", sources=["upload", "microphone"],
            placeholder="Message", show_label=False, label="Message", autofocus=True,
            max_plain_text_length=10**8, elem_id="box", lines=1, max_lines=8,
        )  # fmt: skip

    def _chat_events(self, demo: gr.Blocks) -> None:
        w, chat = self._widgets, self._chat
        wishes = [w["key"], *(w[name] for name in WISHES)]
        self._on_question(w["box"].submit, chat.send, [w["box"], *wishes])
        self._on_question(w["voice"].turn, chat.spoken, [w["box"], *wishes])
        self._on_question(w["chat"].retry, chat.retry, wishes)
        self._on_question(w["chat"].edit, chat.edit, wishes)
        self._on_question(w["chat"].example_select, examples.chosen(chat), wishes)
        answers: dict[str, Any] = {"trigger_mode": "multiple"}
        w["history"].input(None, [w["history"]], [w["key"]], js=CHOSEN_KEY)
        self._on(w["history"].input, chat.open, [w["history"]], **answers)
        self._on(w["voice"].back, chat.back, [w["key"]], **answers)
        self._on(demo.load, chat.open, [w["key"]], **answers)
        self._on(w["voice"].halt, chat.halt, [w["key"]], **answers)
        self._on(w["voice"].seen, chat.listed)
        self._on(w["chat"].undo, chat.undo, [w["box"], w["key"]])
        self._on(w["chat"].clear, chat.clear, [w["key"]])
        self._on(w["chat"].like, chat.like, [w["key"]])
        w["new"].click(None, None, [w["key"], w["chat"], w["history"], w["title"]], js=BLANK)
        self._on(w["new"].click, chat.fresh, [w["key"]], **answers)
        self._on(w["query"].change, chat.search, [w["query"]])
        for named in (w["title"].submit, w["title"].blur):
            self._on(named, chat.rename, [w["key"], w["title"]])
        self._on(w["delete"].click, chat.delete, [w["key"]], js=CONFIRM_DELETE)
        w["export"].click(None, [w["key"]], None, js=HAND % "export")
        w["voice"].leave(None, [w["box"]], None, js=HAND % "leave")
        w["voice"].restored(None, None, [w["box"]], js=DRAFT)
        demo.unload(chat.left)

    def _settings_events(self, demo: gr.Blocks) -> None:
        """The settings live in the browser and come back with the page."""
        fields = [self._widgets[name] for name in WISHES]
        kept = gr.BrowserState(dataclasses.asdict(DEFAULTS), storage_key="omni-settings", secret=BROWSER_SECRET)
        quietly: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        for field in fields:
            field.input(lambda *values: dict(zip(WISHES, values, strict=True)), fields, kept, **quietly)
        demo.load(_settings, [kept], fields, **quietly)

    def _status_events(self, demo: gr.Blocks) -> None:
        w = self._widgets
        self._on(w["timer"].tick, self._refresh, outputs=STATUS, queue=False)
        self._on(demo.load, self._refresh, outputs=STATUS, queue=False)

    def _refresh(self) -> dict[str, Any]:
        status = self._runner.status()
        voices = gr.update(choices=[AUTOMATIC, *status.voices]) if status.ready else gr.skip()
        taken = [kind for kind in MEDIA if kind in status.modalities]
        box = gr.update(file_types=taken) if status.ready else gr.skip()
        timer = gr.Timer(active=not status.ready)
        return {"header": self._header(), "timer": timer, "voice_name": voices, "box": box}

    def _header(self) -> str:
        status = self._runner.status()
        state = "ready" if status.ready else "waiting"
        model, why = html.escape(status.model), sentence(status.why)
        because = sentence(self._runner.chosen_because)
        name = html.escape(status.name)
        chip = f'<span class="engine {state}"><b>{name}</b> {model}</span>'
        return f'<div class="header" data-lacks="{_lacks(status)}"><h1>Omni</h1>{chip}<p>{why} {because}</p></div>'

    def _on_question(self, event: Callable[..., Any], handler: Callable[..., Any], inputs: list[Any]) -> None:
        """An event that is answered. The voice bar hears of it before the server does, so that Stop works at once."""
        quietly: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        event(None, None, None, js=TELL % "asked", trigger_mode="multiple", **quietly)
        answering = self._on(event, handler, inputs, trigger_mode="multiple")
        answering.then(None, None, None, js=TELL % "ended", **quietly)
        answering.failure(None, None, None, js=TELL % "failed", **quietly)

    def _on(
        self, event: Callable[..., Any], handler: Callable[..., Any], inputs: Any = None,
        outputs: tuple[str, ...] = CONVERSATION, **options: Any,
    ) -> Any:  # fmt: skip
        widgets = [self._widgets[name] for name in outputs]
        common = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
        return event(self._bound(handler, outputs), inputs, widgets, **common | options)

    def _bound(self, handler: Callable[..., Any], outputs: tuple[str, ...]) -> Callable[..., Any]:
        """The handler with its `{name: update}` turned into `{widget: update}`."""
        if inspect.isasyncgenfunction(handler):

            @functools.wraps(handler)
            async def stream(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
                # Gradio sends what a generator yielded last once more when it ends, and nulls when it yielded nothing;
                # by then the visitor may be looking at another conversation.
                async for update in handler(*args, **kwargs):
                    yield self._by_widget(update, outputs)
                yield self._by_widget(None, outputs)

            return stream

        @functools.wraps(handler)
        async def once(*args: Any, **kwargs: Any) -> Any:
            result = handler(*args, **kwargs)
            return self._by_widget(await result if inspect.isawaitable(result) else result, outputs)

        return once

    def _by_widget(self, update: dict[str, Any] | None, outputs: tuple[str, ...]) -> dict[Any, Any]:
        # Gradio takes an empty dictionary for a missing one, so "nothing to change" is said about one widget.
        shown = self._refresh() if update and "status" in update else update or {outputs[0]: gr.skip()}
        return {self._widgets[name]: value for name, value in shown.items()}


def _lacks(status: EngineStatus) -> str:
    """What the engine, which is ready, cannot do: style.css hides the widgets for it."""
    media: list[str] = [kind for kind in MEDIA if kind not in status.modalities]
    return " ".join(media + ([] if status.speaks else ["speech"])) if status.ready else ""


def _settings(kept: dict[str, Any] | None) -> list[Any]:
    """The settings in the order of their widgets; what the browser does not know has its default."""
    return [(kept or {}).get(name, default) for name, default in dataclasses.asdict(DEFAULTS).items()]


def _script() -> str:
    return "\n".join((STATIC / name).read_text() for name in SCRIPTS)
