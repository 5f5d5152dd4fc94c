"""A small helping of the fuzzer; `python -m tests.soak.fuzz --inputs 10000` is the whole of it."""

from __future__ import annotations

import asyncio

from tests.soak import fuzz
from tests.soak.app import running


def test_three_hundred_spoiled_inputs_do_no_harm() -> None:
    with running() as app:
        found = asyncio.run(fuzz.fuzz(app, range(300), seed=1))
    assert found.problems == []
    assert sum(found.statuses.values()) == 300
