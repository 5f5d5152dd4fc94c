"""Gradio's page, without two of its habits."""

from __future__ import annotations

from typing import Any

import gradio as gr


class Blocks(gr.Blocks):
    @property
    def expects_oauth(self) -> bool:
        """No login routes are added wherever there is a LoginButton; `hub_login` says why."""
        return False

    def handle_streaming_diffs(self, block_fn: Any, data: list[Any], *args: Any, **kwargs: Any) -> list[Any]:
        """What a generator yields, as the differences that are sent; objects whole.

        Gradio's client makes a difference within the very object that it handed over last, which a slow page has not
        looked at yet. What is said once, as all that `gr.update` says, was taken back by the next yield.
        """
        values = list(data)
        sent = super().handle_streaming_diffs(block_fn, data, *args, **kwargs)
        return [_whole(value, edits) for value, edits in zip(values, sent, strict=True)]


def _whole(value: Any, edits: Any) -> Any:
    """`edits` as in `gradio.utils.diff`; the first and the last time they are the value itself."""
    return [["replace", [], value]] if isinstance(value, dict) and isinstance(edits, list) and edits else edits
