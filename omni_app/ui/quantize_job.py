"""One quantization job at one moment, as the Quantize page tells of it."""

from __future__ import annotations

import html
import time
from dataclasses import dataclass, replace
from pathlib import Path

from omni_app.jobs import Job, Request, State, Step, Task
from omni_app.quantizing import Quantizer
from omni_app.ui.quantize_plots import duration, memory_html

STAGES = {
    "environment": "Environment", "fetch": "Fetch", "check": "Check", "capture": "Calibrate", "quantize": "Quantize",
    "convert": "Convert", "verify": "Verify", "measure": "Measure", "finish": "Finish",
}  # fmt: skip
ALWAYS: dict[Task, tuple[str, ...]] = {
    "quantize": ("quantize", "verify", "finish"), "convert": ("check", "convert", "verify"), "verify": ("verify",),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One job at one moment; without its steps, thousands of lines, unless it is the one to be shown."""

    request: Request
    state: State
    ahead: int
    steps: tuple[Step, ...] = ()

    @classmethod
    def of(cls, job: Job, quantizer: Quantizer) -> Snapshot:
        state = job.state
        ahead = quantizer.ahead(job) if state.status == "queued" else 0
        return cls(job.request, state, ahead)

    def with_steps(self, job: Job) -> Snapshot:
        return replace(self, steps=tuple(job.steps(self.state.created)))


def line(one: Snapshot) -> str:
    """The job in the list."""
    made = time.strftime("%d %b %H:%M", time.localtime(one.state.created))
    place = f", {one.ahead} ahead" if one.state.status == "queued" else ""
    verified = "verify " if one.request.task == "verify" else ""
    return f"{verified}{Path(one.request.output).name} · {made} · {one.state.status}{place}"


def job_html(one: Snapshot, now: float) -> str:
    """Name, status and what is going on, for people."""
    state = one.state
    where = "" if state.status == "done" else f'<p class="where">{html.escape(one.request.output)}</p>'  # told above
    return (
        f'<div class="quantize job"><h2>{html.escape(_what(one.request))}</h2>'
        f'<span class="chip {state.status}">{state.status}</span>'
        f'<p role="status">{html.escape(_words(one, now))}</p>{_progress(one)}'
        f"{memory_html(one.steps)}{where}</div>"
    )


def _what(asked: Request) -> str:
    name, recipe = Path(asked.source).name, asked.recipe
    if recipe is None:
        return f"{name} to compressed-tensors" if asked.task == "convert" else f"Is {name} sound?"
    return f"{name} to {recipe.scheme}{'' if recipe.algorithm == 'rtn' else f' by {recipe.algorithm}'}"


def _words(one: Snapshot, now: float) -> str:
    state = one.state
    if state.status == "queued":
        others = "1 job is" if one.ahead == 1 else f"{one.ahead} jobs are"
        return f"Waiting: {others} before this one." if one.ahead else "It starts in a moment."
    if state.status == "running":
        return f"At work for {duration(max(now - state.started, 0))}."
    took = f" It took {duration(state.ended - state.started)}." if state.status == "done" and state.started else ""
    return state.message + took


def _progress(one: Snapshot) -> str:
    """The stages, and how far the present one is."""
    if one.state.status not in ("running", "failed", "interrupted", "cancelled") or not one.steps:
        return ""
    last, seen = one.steps[-1], {step.stage for step in one.steps}
    stages = [name for name in STAGES if name in seen or name in ALWAYS[one.request.task]]
    items = "".join(f'<li class="{_phase(name, last.stage, stages)}">{STAGES[name]}</li>' for name in stages)
    share = 100 * last.done / last.total if last.total else 0
    left = f", about {duration(last.seconds_left)} left" if last.seconds_left and one.state.status == "running" else ""
    layer = f": {last.layer}" if last.layer else ""
    told = f"{STAGES.get(last.stage, last.stage)} {last.done} of {last.total}{layer}{left}"
    return (
        f'<ol class="stages">{items}</ol><div class="progress" role="progressbar" aria-valuenow="{share:.0f}" '
        f'aria-valuemin="0" aria-valuemax="100" aria-label="Progress of this stage">'
        f'<i style="width:{share:.1f}%"></i></div><p class="step">{html.escape(told)}</p>'
    )


def _phase(name: str, present: str, stages: list[str]) -> str:
    if name == present:
        return "now"
    return "past" if present in stages and stages.index(name) < stages.index(present) else "to-come"
