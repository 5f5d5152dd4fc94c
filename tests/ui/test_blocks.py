"""What a generator's yields are sent as."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gradio as gr

from omni_app.ui.blocks import Blocks

SAID: list[list[Any]] = [
    [gr.update(value="a"), "one", [{"role": "user", "content": "x"}]],
    [gr.skip(), "one two", [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]],
    [gr.update(choices=["b"]), gr.skip(), gr.skip()],
    [gr.update(choices=["b"]), gr.skip(), gr.skip()],
]


def sent() -> list[list[Any]]:
    page, function = Blocks(), SimpleNamespace(outputs=[None] * 3)
    told = [page.handle_streaming_diffs(function, list(one), "session", "run", final=False) for one in SAID]
    return [*told, page.handle_streaming_diffs(function, [None] * 3, "session", "run", final=True)]


def test_an_object_is_sent_whole_and_the_rest_as_what_is_new() -> None:
    first, second, third, same, last = sent()
    assert first == SAID[0]
    assert second == [
        [["replace", [], gr.skip()]],
        [["append", [], " two"]],
        [["add", [1], {"role": "assistant", "content": "y"}]],
    ]
    assert third == [[["replace", [], value]] for value in SAID[2]]
    assert same == [[], [], []]
    assert last == SAID[3]
