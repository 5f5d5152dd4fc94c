"""The System page: what this machine can do, and the model's server on it: planned, started, followed, stopped."""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import gradio as gr
from gradio.components.navbar import Navbar

from omni_app import checks, doctor, hardware
from omni_app.doctor import Finding
from omni_app.errors import BadRequest, OmniError
from omni_app.runner import Runner
from omni_app.server import gpu_memory, telemetry
from omni_app.server.control import ServerControl, with_own_server
from omni_app.server.prepare import Order
from omni_app.server.profile import Wishes
from omni_app.server.state import CHANGING, ServerState
from omni_app.server.telemetry import Reading
from omni_app.settings import Settings
from omni_app.ui.confirm import confirmed
from omni_app.ui.operators import TAKES_PASSWORD, Operators
from omni_app.ui.render import sentence

LOG_LINES = 200
CHANGING_S, WORKING_S = 1.0, 5.0
"""Seconds between two looks while the server changes, and while it works: a crash must show."""
CONFIRM_STOP = confirmed("'Stop the server? Answers that are being made end.'", "password")
SHOWN = ("engine", "server", "log", "timer", "start", "stop")
CLOSED = f"Serving a model, and what machine this is, are the operator's. {TAKES_PASSWORD}"


class SystemPage:
    def __init__(self, runner: Runner, settings: Settings, control: ServerControl, operators: Operators) -> None:
        self._runner = runner
        self._settings = settings
        self._control = control
        self._operators = operators
        self._widgets: dict[str, Any] = {}

    def mount(self, demo: gr.Blocks) -> None:
        """Add the page to a finished app."""
        with demo.route("System", "/system"):
            Navbar(main_page_name="Talk")
            self._told()
            gr.HTML(f'<p role="note">{CLOSED}</p>', visible=not self._operators.possible)
            with gr.Accordion("Serve a model", open=True, visible=self._operators.possible, elem_id="serve"):
                self._form()
            self._machine(demo)
            self._events(demo)

    def _told(self) -> None:
        add = self._widgets
        add["engine"] = gr.HTML(elem_id="engine-state")
        add["server"] = gr.HTML(elem_id="server-state")
        add["log"] = gr.Textbox(
            label="The server's log", lines=8, max_lines=16, autoscroll=True, interactive=False, visible=False,
            elem_id="server-log",
        )  # fmt: skip
        add["timer"] = gr.Timer(CHANGING_S, active=False)

    def _form(self) -> None:
        add, wishes = self._widgets, Wishes()
        add["model"] = gr.Textbox(label="Folder of the model", placeholder="/models/qwen3-omni-nvfp4", elem_id="model")
        with gr.Row():
            add["speech"] = gr.Checkbox(wishes.speech, label="It speaks")
            add["users"] = gr.Number(wishes.users, label="Users at a time", precision=0, minimum=1)
            add["context"] = gr.Number(wishes.context_tokens, label="Context in tokens", precision=0, minimum=1024)
        add["password"] = gr.Textbox(
            label="Operator's password", type="password", visible=self._operators.ask_for_password
        )
        with gr.Row():
            add["preview"] = gr.Button("Show the plan", elem_id="preview")
            add["start"] = gr.Button("Start", variant="primary", elem_id="start")
            add["stop"] = gr.Button("Stop", variant="stop", elem_id="stop")
        add["answer"] = gr.HTML(elem_id="answer")
        add["plan"] = gr.Code(
            label="The plan", language="yaml", visible=False, elem_id="plan", interactive=False, max_lines=20
        )

    def _machine(self, demo: gr.Blocks) -> None:
        facts = gr.HTML(elem_id="facts")
        password = self._widgets["password"]
        told = {"show_progress": "hidden", "api_visibility": "private"}
        gr.on([demo.load, password.submit], self._facts, [password], facts, **told)

    def _events(self, demo: gr.Blocks) -> None:
        w = self._widgets
        order = [w[name] for name in ("password", "model", "speech", "users", "context")]
        shown = [w[name] for name in SHOWN]
        common: dict[str, Any] = {"api_visibility": "private"}
        look: dict[str, Any] = {
            "fn": self._look,
            "inputs": [w["password"]],
            "outputs": shown,
            "show_progress": "hidden",
        }
        w["preview"].click(self._preview, order, [w["answer"], w["plan"]], **common)
        w["start"].click(self._start, order, [w["answer"], w["plan"]], **common).then(**look, **common)
        w["stop"].click(self._stop, [w["password"]], w["answer"], js=CONFIRM_STOP, **common).then(**look, **common)
        gr.on([w["timer"].tick, demo.load, w["password"].submit], **look, queue=False, **common)

    async def _look(self, password: str, request: gr.Request) -> list[Any]:
        """Everything that changes by itself, in the order of SHOWN."""
        operator = await self._operators.let_in(password, request)
        return await anyio.to_thread.run_sync(self._shown, operator)

    def _shown(self, operator: bool) -> list[Any]:
        state = self._control.state()
        tail = self._control.folder.tail(LOG_LINES) if operator and state.began else []
        readings = readings_html(telemetry.read()) if operator else ""
        changes = state.status in CHANGING or self._moves_to(state)
        every = CHANGING_S if changes else WORKING_S
        return [
            self._engine(state), server_html(state, time.time(), gpu_memory.by_stage(state)) + readings,
            gr.Textbox("\n".join(tail), visible=bool(tail)), gr.Timer(every, active=state.works),
            gr.Button(interactive=not state.works), gr.Button(interactive=state.works),
        ]  # fmt: skip

    def _engine(self, state: ServerState) -> str:
        status = self._runner.status()
        words = f"{status.why} {self._runner.chosen_because}"
        if self._moves_to(state):
            words += " The app moves to the server below now."
        elif state.status == "ready" and state.endpoint not in status.why:
            words += " The server below is ready, but OMNI_ENGINE or OMNI_ENDPOINT keeps the app from it."
        ready = "ready" if status.ready else "waiting"
        chip = f'<span class="engine {ready}"><b>{html.escape(status.name)}</b> {html.escape(status.model)}</span>'
        return f'<div class="header"><h2>Engine</h2>{chip}<p>{sentence(words)}</p></div>'

    def _moves_to(self, state: ServerState) -> bool:
        found, because = with_own_server(self._settings)
        return bool(because) and state.status == "ready" and found.endpoint not in self._runner.status().why

    async def _facts(self, password: str, request: gr.Request) -> str:
        if not await self._operators.let_in(password, request):
            return ""
        return findings_html(await anyio.to_thread.run_sync(self._examined))

    def _examined(self) -> list[Finding]:
        return doctor.examine(self._settings, hardware.detect(checks.folders(self._settings)), running=True)

    # Gradio gives the request only to a parameter among the named ones, so the form is spelled out.
    async def _preview(
        self, password: str, model: str, speech: bool, users: float | None, context: float | None, request: gr.Request
    ) -> list[Any]:
        def preview() -> list[Any]:
            return self._planned(_order(model, speech, users, context), only_plan=True)

        return await self._try(password, request, preview)

    async def _start(
        self, password: str, model: str, speech: bool, users: float | None, context: float | None, request: gr.Request
    ) -> list[Any]:
        def start() -> list[Any]:
            order = _order(model, speech, users, context)
            self._control.make_room()
            _, text = self._planned(order)
            self._control.start(order)
            return ["", text]

        return await self._try(password, request, start)

    async def _stop(self, password: str, request: gr.Request) -> str:
        try:
            await self._operators.check(password, request)
            await self._control.stop()
        except OmniError as error:
            return alert(error)
        return ""

    async def _try(self, password: str, request: gr.Request, work: Callable[[], list[Any]]) -> list[Any]:
        try:
            await self._operators.check(password, request)
            return await anyio.to_thread.run_sync(work)
        except OmniError as error:
            return [alert(error), gr.skip()]

    def _planned(self, order: Order, only_plan: bool = False) -> list[Any]:
        prepared = self._control.prepare(order, only_plan)
        plan = prepared.plan
        lines = [*plan.table(), *plan.warnings, prepared.lacks] if plan else []
        table = sentence("\n".join(lines).rstrip())
        return [f'<pre class="plan">{table}</pre>', gr.Code(plan.text if plan else "", visible=plan is not None)]


def _order(model: str, speech: bool, users: float | None, context: float | None) -> Order:
    """Raises BadRequest for what the form lacks."""
    if not model.strip():
        raise BadRequest("Name the folder of the model.")
    return Order(Path(model.strip()), Wishes(speech, int(users or 0), int(context or 0)))


def server_html(state: ServerState, now: float, memory: dict[str, float]) -> str:
    """The server's state: a headline, and a line for each stage with the GPU memory that it holds."""
    head, *stages = map(html.escape, state.lines(now))
    rows = []
    for stage, line in zip(state.stages, stages, strict=True):
        held = f" · {memory[stage.name]:.1f} GiB of GPU memory" if stage.name in memory else ""
        rows.append(f'<li class="{stage.phase}">{line.strip()}{held}</li>')
    where = f"<p>{html.escape(state.model)} · {html.escape(state.endpoint)}</p>" if state.works and state.model else ""
    told = head if state.status != "none" else html.escape(state.message) or "No server has been started here."
    return f'<div class="server" role="status"><h2>Server</h2><p>{told}</p>{where}<ul>{"".join(rows)}</ul></div>'


def readings_html(readings: list[Reading]) -> str:
    """How hard the machine works, on one line; each figure says on hover where it comes from."""
    figures = (
        f'<span title="{html.escape(one.source)}">{html.escape(f"{one.name} {one.value}")}</span>' for one in readings
    )
    return f'<p class="readings">{" · ".join(figures)}</p>' if readings else ""


def findings_html(findings: list[Finding]) -> str:
    rows = (
        f'<tr class="{one.level}"><th scope="row">{html.escape(one.name)}</th><td>{html.escape(one.value)}</td>'
        f"<td>{sentence(one.reason)}</td></tr>"
        for one in findings
    )
    return f'<h2>This machine</h2><table class="facts"><tbody>{"".join(rows)}</tbody></table>'


def alert(error: OmniError) -> str:
    return f'<p role="alert">{sentence(str(error))}</p>'
