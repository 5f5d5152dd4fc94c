"""The Quantize page: a model's parts in bytes, what a recipe would make of them, and the jobs that do it."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import anyio.to_thread
import gradio as gr
from gradio.components.navbar import Navbar

from omni_app import hardware
from omni_app.errors import BadRequest, OmniError
from omni_app.jobs import Recipe
from omni_app.quantizing import Choices, Estimate, Order, Quantizer
from omni_app.server import checkpoint
from omni_app.server.control import ServerControl
from omni_app.server.forecast import Forecast, forecast
from omni_app.server.profile import Wishes
from omni_app.settings import Settings
from omni_app.ui.operators import TAKES_PASSWORD, Operators
from omni_app.ui.quantize_jobs import JobsPanel
from omni_app.ui.quantize_packed import PackedPanel
from omni_app.ui.quantize_plots import estimate_html, size
from omni_app.ui.render import sentence
from omni_app.ui.sign_in import sign_in_button
from omni_app.ui.system import alert

DEFAULT = Recipe(scheme="NVFP4A16", algorithm="rtn")
OWN_RECIPE = "my own"
GROUPS = [("128, the usual", 0), ("64", 64), ("32", 32)]
FORM = ("source", "recipe", "scheme", "algorithm", "parts", "samples", "group", "output")
"""What makes an estimate, in the order of its handlers' parameters."""
ESTIMATED = ("estimate", "algorithm", "data", "group", "scheme_why", "algorithm_why", "output")
LOOKED = (*ESTIMATED, "parts", "more")
TO_JOB = """() => {
  if (!document.querySelector('#start-answer [role=alert], #packed-answer [role=alert]'))
    document.querySelector('#jobs')?.scrollIntoView({behavior: 'smooth'});
}"""
CLOSED = f"Quantizing is the operator's, since it takes this machine's memory and disk for long. {TAKES_PASSWORD}"
ON_A_SPACE = "What a Space writes is lost when it restarts, unless OMNI_DATA_DIR lies in its persistent storage. "
FIRST_USE = (
    "The quantizer's own environment is not built yet. The first job builds it (about 2 GB, some minutes, shown as its "
    "first stage); `make quantize-env` does so beforehand."
)
OUTDATED = (
    "The quantizer's own environment was built for other requirements ({differs}). The next job brings it up to date "
    "(shown as its first stage); `make quantize-env` does so beforehand."
)


class QuantizePage:
    def __init__(self, settings: Settings, control: ServerControl, operators: Operators) -> None:
        self._quantizer = Quantizer(settings)
        self._sign_in = settings.hub_login != "off"
        self._operators = operators
        self._jobs = JobsPanel(self._quantizer, control, operators, self._sign_in)
        self._packed = PackedPanel(self._quantizer, self._free)
        self._widgets: dict[str, Any] = {}

    def mount(self, demo: gr.Blocks) -> None:
        """Add the page to a finished app."""
        with demo.route("Quantize", "/quantize"):
            Navbar(main_page_name="Talk")
            with gr.Row(elem_classes="top"):
                gr.HTML(_head(self._operators.possible), padding=False)
                if self._sign_in:
                    sign_in_button(demo)
            self._password = gr.Textbox(
                "", label="Operator's password", type="password", visible=self._operators.ask_for_password
            )
            with gr.Accordion("Make a smaller model", visible=self._operators.possible, elem_id="quantize-form"):
                self._form()
            self._jobs.build()
            self._events(demo)

    def _form(self) -> None:
        add = self._widgets
        add["notes"] = gr.Markdown(elem_id="notes")
        with gr.Row(elem_id="source-row"):
            add["source"] = gr.Textbox(
                "", label="The model's folder, or its name on the hub", scale=5, min_width=280, elem_id="source",
                placeholder="/models/Qwen3-Omni-30B-A3B-Instruct",
            )  # fmt: skip
            add["look"] = gr.Button("Look", variant="primary", scale=1, min_width=90, elem_id="look")
        add["looked"] = gr.HTML(elem_id="looked", padding=False)
        with gr.Column(visible=False, elem_id="recipe") as add["more"]:
            with gr.Row():
                with gr.Column(scale=2):
                    self._recipe()
                with gr.Column(scale=3):
                    add["estimate"] = gr.HTML(elem_id="estimate", padding=False)
            self._where()
        self._packed.build()

    def _recipe(self) -> None:
        add = self._widgets
        add["recipe"] = gr.Dropdown([OWN_RECIPE], value=OWN_RECIPE, label="Recipe", elem_id="named-recipe")
        add["recipe_why"] = gr.HTML(padding=False)
        add["scheme"] = gr.Radio([DEFAULT.scheme], value=DEFAULT.scheme, label="Scheme", elem_id="scheme")
        add["scheme_why"] = gr.HTML(padding=False)
        add["algorithm"] = gr.Radio(
            [DEFAULT.algorithm], value=DEFAULT.algorithm, label="Algorithm", elem_id="algorithm"
        )
        add["algorithm_why"] = gr.HTML(padding=False)
        add["group"] = gr.Dropdown(GROUPS, value=0, label="Weights that share a scale", visible=False)
        add["parts"] = gr.CheckboxGroup([], label="Parts to quantize", elem_id="parts")
        with gr.Column(visible=False, elem_id="calibration") as add["data"]:
            add["samples"] = gr.Number(DEFAULT.samples, label="Calibration samples", precision=0, minimum=2)
            add["calibration"] = gr.Textbox(
                "",
                label="Calibration set: a folder or a JSONL file",
                placeholder="empty: the small set that comes with the app",
            )

    def _where(self) -> None:
        add = self._widgets
        add["output"] = gr.Textbox("", label="Folder for the result", elem_id="output")
        add["start"] = gr.Button("Start", variant="primary", elem_id="start-job")
        add["started"] = gr.HTML(elem_id="start-answer", padding=False)

    def _events(self, demo: gr.Blocks) -> None:
        w = self._widgets
        common: dict[str, Any] = {"api_visibility": "private"}
        form = [self._password, *(w[name] for name in FORM)]
        looked = [w["looked"], *(w[name] for name in LOOKED), *self._packed.outputs]
        look: dict[str, Any] = {"fn": self._look, "inputs": form, "outputs": looked, **common}
        estimate: dict[str, Any] = {
            "fn": self._estimate, "inputs": form, "outputs": [w["looked"], *(w[name] for name in ESTIMATED)],
            "show_progress": "hidden", "trigger_mode": "always_last", **common,
        }  # fmt: skip
        gr.on([w["look"].click, w["source"].submit], **look)
        choosing = [w[name].input for name in ("scheme", "algorithm", "parts", "samples", "group")]
        gr.on([*choosing, w["output"].submit, w["output"].blur], **estimate)
        named = [w[name] for name in ("recipe_why", "scheme", "algorithm", "samples", "group")]
        w["recipe"].input(self._named, w["recipe"], named, queue=False, show_progress="hidden", **common).then(
            **estimate
        )
        choices = [w[name] for name in ("notes", "recipe", "scheme")]
        demo.load(self._choices, None, choices, show_progress="hidden", **common)
        again = self._jobs.events(demo, self._password)
        start = w["start"].click(self._start, [*form, w["calibration"]], [w["started"], self._jobs.chosen], **common)
        packed, answer = self._packed, [self._packed.answer, self._jobs.chosen]
        verify = packed.verify.click(self._verify, [self._password, w["source"], packed.original], answer, **common)
        convert = packed.convert.click(self._convert, [self._password, w["source"], packed.output], answer, **common)
        for event in (start, verify, convert):
            event.then(**again).then(None, None, None, js=TO_JOB)

    async def _choices(self) -> list[Any]:
        if not self._operators.possible:
            return [gr.skip()] * 3
        try:
            found = await anyio.to_thread.run_sync(self._quantizer.choices)
        except OmniError as error:
            return [alert(error), gr.skip(), gr.skip()]
        space = ON_A_SPACE if os.environ.get("SPACE_ID") else ""
        schemes = [(f"{one.name.replace('_', ' ')} · {one.label}", one.name) for one in found.schemes]
        return [
            gr.Markdown(space + _environment(found)),
            gr.Dropdown([OWN_RECIPE, *(one.name for one in found.recipes)]), gr.Radio(schemes),
        ]  # fmt: skip

    def _named(self, name: str) -> list[Any]:
        recipe = next((one for one in self._quantizer.choices().recipes if one.name == name), None)
        if recipe is None:
            return ["", *[gr.skip()] * 4]
        algorithms = self._quantizer.choices().scheme(recipe.scheme).algorithms
        return [
            _quiet(recipe.why), recipe.scheme, gr.Radio(algorithms, value=recipe.algorithm), recipe.samples,
            recipe.group,
        ]  # fmt: skip

    # Gradio gives the request only to a parameter among the named ones, so the form is spelled out.
    async def _look(
        self, password: str, source: str, named: str, scheme: str, algorithm: str, parts: list[str],
        samples: float | None, group: int, output: str, request: gr.Request,
    ) -> list[Any]:  # fmt: skip
        def work() -> list[Any]:
            order = self._order(source, named, scheme, algorithm, None, samples, group, output)
            try:
                found, shown = self._estimated(order)
            except BadRequest as refused:
                rest = [gr.skip()] * (len(LOOKED) - 1)
                return [*rest, gr.Column(visible=False), *self._packed.shown(source, refused)]
            choosable = [(f"{part.label}, {size(part.bytes_now)}", part.name) for part in found.parts if part.choosable]
            chosen = [part.name for part in found.parts if part.quantized]
            return [*shown, gr.CheckboxGroup(choosable, value=chosen), gr.Column(visible=True), *self._packed.hidden()]

        return await self._try(password, request, work, len(LOOKED) + len(self._packed.outputs))

    async def _estimate(
        self, password: str, source: str, named: str, scheme: str, algorithm: str, parts: list[str],
        samples: float | None, group: int, output: str, request: gr.Request,
    ) -> list[Any]:  # fmt: skip
        def work() -> list[Any]:
            return self._estimated(self._order(source, named, scheme, algorithm, parts, samples, group, output))[1]

        return await self._try(password, request, work, len(ESTIMATED))

    async def _start(
        self, password: str, source: str, named: str, scheme: str, algorithm: str, parts: list[str],
        samples: float | None, group: int, output: str, calibration: str, request: gr.Request,
    ) -> list[Any]:  # fmt: skip
        def work() -> list[Any]:
            order = self._order(source, named, scheme, algorithm, parts, samples, group, output)
            return [self._quantizer.start(replace(order, calibration=calibration)).id]

        return await self._try(password, request, work, 1)

    async def _verify(self, password: str, source: str, original: str, request: gr.Request) -> list[Any]:
        return await self._try(password, request, lambda: [self._quantizer.verify(source, original).id], 1)

    async def _convert(self, password: str, source: str, output: str, request: gr.Request) -> list[Any]:
        return await self._try(password, request, lambda: [self._quantizer.convert(source, output).id], 1)

    async def _try(self, password: str, request: gr.Request, work: Callable[[], list[Any]], count: int) -> list[Any]:
        """What `work` gives, below an empty sentence; or the sentence that says why not, and everything as it was."""
        try:
            await self._operators.check(password, request)
            return ["", *await anyio.to_thread.run_sync(work)]
        except OmniError as error:
            return [alert(error), *[gr.skip()] * count]

    def _order(
        self, source: str, named: str, scheme: str, algorithm: str, parts: list[str] | None, samples: float | None,
        group: int, output: str,
    ) -> Order:  # fmt: skip
        """Raises BadRequest. parts: None for the usual ones of this model."""
        if parts == []:
            raise BadRequest("Choose at least one part to quantize.")
        known = self._quantizer.choices().scheme(scheme).algorithms
        recipe = Recipe(
            scheme=scheme, algorithm=algorithm if algorithm in known else known[0], parts=tuple(parts or ()),
            samples=int(samples or 0), group=group if scheme == "W4A16" else 0,
            mix=next((one.mix for one in self._quantizer.choices().recipes if one.name == named), ""),
        )  # fmt: skip
        if self._quantizer.choices().scheme(scheme).needs_data(recipe.algorithm) and recipe.samples < 2:
            raise BadRequest("Calibration needs at least 2 samples.")
        return Order(source, recipe, output)

    def _estimated(self, order: Order) -> tuple[Estimate, list[Any]]:
        """The estimate, and what the widgets of ESTIMATED become by it."""
        found, choices = self._quantizer.estimate(order), self._quantizer.choices()
        recipe, scheme = order.recipe, choices.scheme(order.recipe.scheme)
        shown = estimate_html(found, served(order, found))
        return found, [
            shown, gr.Radio(scheme.algorithms, value=recipe.algorithm),
            gr.Column(visible=scheme.needs_data(recipe.algorithm)), gr.Dropdown(visible=scheme.name == "W4A16"),
            _quiet(f"Runs on: {scheme.serving}."), _quiet(f"{choices.algorithms[recipe.algorithm]}."),
            self._output_of(order),
        ]  # fmt: skip

    def _output_of(self, order: Order) -> Any:
        """What the user named stays, typed on or not; else a folder that does not exist yet, called after the model and
        the scheme."""
        name = Path(order.source.strip().partition("@")[0]).name
        kinds = "|".join(scheme.name for scheme in self._quantizer.choices().schemes)
        ours = re.fullmatch(rf".+-(?:{kinds})(?:-\d+)?", Path(order.output).name)
        if order.output.strip() and not (ours and Path(order.output).parent == self._quantizer.models):
            return gr.skip()
        return self._free(f"{name}-{order.recipe.scheme}")

    def _free(self, name: str) -> str:
        """A folder for a result that does not exist yet, and that no living job is making."""
        wanted, promised = self._quantizer.models / name, self._quantizer.promised()
        others = (wanted.with_name(f"{name}-{number}") for number in itertools.count(2))
        free = (path for path in itertools.chain([wanted], others) if not path.exists() and str(path) not in promised)
        return str(next(free))


def served(order: Order, found: Estimate) -> list[Forecast]:
    """Where the result could be served; empty where the planner does not know the model, or its files are not here."""
    folder = Path(order.source.strip()).expanduser()
    if not (folder / "config.json").is_file():
        return []
    try:
        now = _read(folder, (folder / "config.json").stat().st_mtime_ns)
    except OmniError:  # a text model, which vLLM serves and our planner does not know
        return []
    after = {part.name: part.bytes_after for part in found.parts if part.quantized}
    form = found.scheme.lower().partition("_")[0]
    return forecast(now, after, form, hardware.detect().gpus, Wishes())


@lru_cache(maxsize=8)
def _read(folder: Path, changed: int) -> checkpoint.Checkpoint:
    """28 000 headers take a second, and an estimate is asked for at every choice."""
    return checkpoint.read(folder)


def _environment(found: Choices) -> str:
    return OUTDATED.format(differs=found.outdated) if found.outdated else "" if found.ready else FIRST_USE


def _quiet(told: str) -> str:
    return f'<p class="quiet">{sentence(told[:1].upper() + told[1:])}</p>'


def _head(possible: bool) -> str:
    told = "From a BF16 model to a smaller one that is checked, described and ready to be served."
    closed = "" if possible else f'<p role="note">{CLOSED}</p>'
    return f'<div class="header"><h1>Quantize</h1><p>{told}</p></div>{closed}'
