"""The jobs on the Quantize page: a list, and one job from its place in the queue to its result being served.

The folders are the truth: each look reads them anew, so a page that comes back shows what another one would.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import anyio.to_thread
import gradio as gr
from gradio.processing_utils import save_file_to_cache

from omni_app.errors import BadRequest, OmniError
from omni_app.hub_login import Person, person_of
from omni_app.jobs import LIVE, Job
from omni_app.quantizing import Quantizer
from omni_app.server.control import ServerControl
from omni_app.server.prepare import Order
from omni_app.ui import quantize_push
from omni_app.ui.confirm import confirmed
from omni_app.ui.operators import Operators
from omni_app.ui.quantize_job import Snapshot, job_html, line
from omni_app.ui.quantize_plots import report_html
from omni_app.ui.system import alert

LIVE_S, RESTING_S = 1.0, 5.0
"""Seconds between two looks while a job lives, and while none does: another visitor may start one."""
SHOWN = ("panel", "list", "job", "log", "cancel", "again", "report", "before", "after", "save", "save_json", "card",
         "cards", "serve", "timer", *quantize_push.SHOWN)  # fmt: skip
CONFIRM_CANCEL = confirmed("'Cancel this job? What it has made so far is removed.'", "password", "chosen")
Look = dict[str, dict[str, Any]]
"""What each widget of SHOWN should be, by Gradio's own names."""


class JobsPanel:
    def __init__(
        self, quantizer: Quantizer, control: ServerControl, operators: Operators, sign_in: bool = False
    ) -> None:
        self._quantizer = quantizer
        self._control = control
        self._operators = operators
        self._widgets: dict[str, Any] = {}
        self._push = quantize_push.PushPanel(self._find, self._try, sign_in)

    def build(self) -> None:
        add = self._widgets
        self.chosen = gr.State("")
        """Id of the job that this tab shows, and that its buttons are about; empty until it has shown one."""
        self._seen: gr.State = gr.State(None)
        add["timer"] = gr.Timer(LIVE_S)
        with gr.Column(visible=False, elem_id="jobs") as add["panel"]:
            add["list"] = gr.Radio([], label="Jobs", elem_id="job-list")
            with gr.Column(elem_id="job"):
                add["job"] = gr.HTML(elem_id="job-state", padding=False)
                with gr.Row():
                    add["cancel"] = gr.Button("Cancel", variant="stop", visible=False, elem_id="cancel")
                    add["again"] = gr.Button("Start again", variant="primary", visible=False, elem_id="again")
                    add["serve"] = gr.Button("Serve this", variant="primary", visible=False, elem_id="serve-this")
                    add["save"] = gr.DownloadButton("Download the report", visible=False, elem_id="save")
                    add["save_json"] = gr.DownloadButton("Download it as JSON", visible=False)
                add["answer"] = gr.HTML(elem_id="job-answer", padding=False)
                self._result()
                add["log"] = gr.Textbox(
                    label="Log", lines=6, max_lines=12, autoscroll=True, interactive=False, visible=False,
                    elem_id="job-log",
                )  # fmt: skip

    def _result(self) -> None:
        add = self._widgets
        add["report"] = gr.HTML(elem_id="report", padding=False)
        with gr.Row():
            add["before"] = gr.Audio(
                label="Before: the original", visible=False, interactive=False, buttons=["download"], elem_id="before"
            )
            add["after"] = gr.Audio(
                label="After: the result", visible=False, interactive=False, buttons=["download"], elem_id="after"
            )
        with gr.Accordion("Model card", open=False, visible=False) as add["cards"]:
            add["card"] = gr.Markdown(elem_id="card")
        self._push.build(add)

    def events(self, demo: gr.Blocks, password: gr.Textbox) -> dict[str, Any]:
        """Wire everything; returns what an event must do for the panel to look anew."""
        w, quiet = self._widgets, {"api_visibility": "private", "show_progress": "hidden"}
        both = [password, self.chosen]
        look = {"fn": self._look, "inputs": [*both, self._seen], "queue": False, **quiet,
                "outputs": [self._seen, self.chosen, *(w[name] for name in SHOWN)]}  # fmt: skip
        gr.on([w["timer"].tick, demo.load, password.submit], **look)
        choose = w["list"].input(lambda job: (job, ""), w["list"], [self.chosen, w["answer"]], queue=False, **quiet)
        choose.then(**look)
        acts = {"cancel": self._cancel, "again": self._again, "serve": self._serve}
        for name, act in acts.items():
            asking = {"js": CONFIRM_CANCEL} if name == "cancel" else {}
            w[name].click(act, both, w["answer"], api_visibility="private", **asking).then(**look)
        self._push.events(w, both, look)
        return look

    async def _look(self, password: str, chosen: str, seen: Look | None, request: gr.Request) -> list[Any]:
        """What has changed since this tab was told last: sound would begin anew, and a list lose its focus.

        It stays with the job that it shows first: another one may end, begin, or be cancelled by a late click.
        """
        operator = await self._operators.let_in(password, request)
        person = person_of(request.request)
        look = await anyio.to_thread.run_sync(self.shown, chosen, person) if operator else hidden()
        known, shows = seen or {}, look["list"].get("value", "")
        stays = gr.skip() if shows in ("", chosen) else shows
        changed = (gr.skip() if known.get(name) == look[name] else gr.update(**look[name]) for name in SHOWN)
        return [look, stays, *changed]

    def shown(self, chosen: str, person: Person | None = None) -> Look:
        found = self._quantizer.jobs()
        jobs = {job.id: Snapshot.of(job, self._quantizer) for job in found}
        if not jobs:
            return hidden(LIVE_S)
        job = next((job for job in found if job.id == chosen), None) or _newest(found, jobs)
        living = self._push.busy or any(one.state.status in LIVE for one in jobs.values())
        names = [(line(one), name) for name, one in jobs.items()]
        return {
            "panel": {"visible": True},
            "list": {"choices": names, "value": job.id, "visible": len(names) > 1},
            "timer": {"value": LIVE_S if living else RESTING_S, "active": True},
            **self._job(job, jobs[job.id].with_steps(job)),
            **self._push.shown(job, jobs[job.id].state.status == "done", person),
        }

    def _job(self, job: Job, at: Snapshot) -> Look:
        status, done = at.state.status, at.state.status == "done"
        report, log, card = job.report, job.log(), job.card if done else ""
        return {
            "job": {"value": job_html(at, time.time())},
            "log": {"value": log, "visible": bool(log)},
            "cancel": {"visible": status in LIVE},
            "again": {"visible": status in ("failed", "cancelled", "interrupted")},
            "serve": {"visible": done},
            "report": {"value": report_html(report) if report else ""},
            "before": self._file("before", job.file(report.speech.wav_before) if report and report.speech else None),
            "after": self._file("after", job.file(report.speech.wav_after) if report and report.speech else None),
            "save": self._file("save", job.file("verification.md") if report else None),
            "save_json": self._file("save_json", job.file("verification.json") if report else None),
            "card": {"value": card},
            "cards": {"visible": bool(card)},
        }

    def _file(self, widget: str, path: Path | None) -> dict[str, Any]:
        """A file of a job for a widget. Gradio hands out only what lies in its own folder."""
        if path is None:
            return {"value": None, "visible": False}
        return {"value": _lent(path, path.stat().st_mtime_ns, self._widgets[widget].GRADIO_CACHE), "visible": True}

    async def _cancel(self, password: str, chosen: str, request: gr.Request) -> str:
        return await self._try(password, request, lambda: self._quantizer.cancel(self._find(chosen)))

    async def _again(self, password: str, chosen: str, request: gr.Request) -> str:
        return await self._try(password, request, lambda: self._quantizer.again(self._find(chosen)))

    async def _serve(self, password: str, chosen: str, request: gr.Request) -> str:
        def serve() -> None:
            order = Order(Path(self._find(chosen).request.output))
            self._control.prepare(order)
            self._control.start(order)

        told = 'The server is starting; <a href="system">the System page</a> shows how it comes up.'
        return await self._try(password, request, serve) or f'<p role="status">{told}</p>'

    async def _try(self, password: str, request: gr.Request, work: Callable[[], None]) -> str:
        try:
            await self._operators.check(password, request)
            await anyio.to_thread.run_sync(work)
        except OmniError as error:
            return alert(error)
        return ""

    def _find(self, chosen: str) -> Job:
        """The job that the tab shows. Raises BadRequest where it is gone."""
        jobs = self._quantizer.jobs()
        if not jobs or (chosen and chosen not in {job.id for job in jobs}):
            raise BadRequest("That job is gone: its folder was removed. Choose another one.")
        if chosen:
            return next(job for job in jobs if job.id == chosen)
        return _newest(jobs, {job.id: Snapshot.of(job, self._quantizer) for job in jobs})


def hidden(every: float = RESTING_S) -> Look:
    """The panel where nothing is to be seen."""
    return {name: {} for name in SHOWN} | {"panel": {"visible": False}, "timer": {"value": every, "active": True}}


def _newest(found: list[Job], jobs: dict[str, Snapshot]) -> Job:
    """The job that works now, or else the newest."""
    return next((job for job in found if jobs[job.id].state.status == "running"), found[0])


@lru_cache(maxsize=256)
def _lent(path: Path, changed: int, cache: str) -> str:
    """A copy of the file in Gradio's folder, made once; `changed` tells a new file of the same name."""
    return str(save_file_to_cache(path, cache))
