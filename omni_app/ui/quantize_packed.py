"""A checkpoint that is quantized already, on the Quantize page: what it is, is it sound, and in another format."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from omni_app.errors import BadRequest
from omni_app.quantizing import Coverage, Inspection, Quantizer
from omni_app.ui.quantize_plots import parameters

_MAKERS = {"modelopt": "ModelOpt", "compressed-tensors": "compressed-tensors (llm-compressor)"}


class PackedPanel:
    def __init__(self, quantizer: Quantizer, free: Callable[[str], str]) -> None:
        """free: a name to a folder for a result that does not exist yet."""
        self._quantizer = quantizer
        self._free = free

    def build(self) -> None:
        with gr.Column(visible=False, elem_id="packed") as self._column:
            self._told = gr.HTML(elem_id="inspected", padding=False)
            self.original = gr.Textbox(
                "", label="The BF16 model it was made from, to compare with", placeholder="empty: it is checked alone",
                elem_id="original",
            )  # fmt: skip
            self.output = gr.Textbox("", label="Folder for the converted model", visible=False, elem_id="converted")
            with gr.Row():
                self.verify = gr.Button("Verify", variant="primary", elem_id="verify")
                self.convert = gr.Button("Convert for vLLM-Omni", visible=False, elem_id="convert")
            self.answer = gr.HTML(elem_id="packed-answer", padding=False)

    @property
    def outputs(self) -> list[Any]:
        """What `shown` and `hidden` give values for."""
        return [self._column, self._told, self.output, self.convert, self.answer]

    def shown(self, source: str, refused: BadRequest) -> list[Any]:
        """For a source that cannot be quantized. Raises `refused` where it is no quantized model either."""
        try:
            found = self._quantizer.inspect(source)
        except BadRequest:
            raise refused from None
        if not found.quantizer:
            raise refused
        can = not found.unconvertible
        output = self._free(f"{Path(source.strip()).name}-compressed-tensors")
        return [gr.Column(visible=True), inspection_html(found), gr.Textbox(output, visible=can),
                gr.Button(visible=can), ""]  # fmt: skip

    def hidden(self) -> list[Any]:
        return [gr.Column(visible=False), *[gr.skip()] * 3, ""]


def inspection_html(found: Inspection) -> str:
    """Who made it, how much of each part is quantized, and whether it can be served and converted."""
    made_by = " ".join(filter(None, [_MAKERS.get(found.quantizer, found.quantizer), found.version]))
    rows = "".join(map(_row, sorted(found.parts, key=lambda part: (-part.quantized, -part.weights))))
    told = (
        f"{found.covered:.1%} of its {parameters(found.weights)} weights are. Quantizing it again would only lose "
        "quality; it can be verified, and served if it passes."
    )
    head = '<tr><th scope="col">Part</th><th scope="col">Weights</th><th scope="col">Quantized</th></tr>'
    return (
        f'<div class="quantize"><h3>Already quantized, by {html.escape(made_by)}</h3><p>{told}</p>{_verdict(found)}'
        "<details><summary>Every part, and how much of it is quantized</summary>"
        f'<table class="facts"><thead>{head}</thead><tbody>{rows}</tbody></table></details></div>'
    )


def _verdict(found: Inspection) -> str:
    told = [f'<p class="verdict no">{html.escape(why)}</p>' for why in found.obstacles]
    if found.quantizer != "modelopt":
        return "".join(told)
    told = told or ['<p class="verdict yes">vLLM-Omni 0.30 can load it as it is, if its scales are sound.</p>']
    if found.unconvertible:
        return "".join([*told, f'<p class="verdict">Not to be converted: {html.escape(found.unconvertible)}</p>'])
    way = "Convert writes the same weights in compressed-tensors' format, and proves that they are the same."
    return "".join([*told, f'<p class="verdict yes">{way}</p>'])


def _row(part: Coverage) -> str:
    share = f"{part.quantized / part.weights:.1%}, {', '.join(part.kinds)}" if part.quantized else "no"
    return (
        f'<tr><th scope="row">{html.escape(part.label)}</th><td>{part.weights / 1e6:,.1f} M</td>'
        f"<td>{html.escape(share)}</td></tr>"
    )
