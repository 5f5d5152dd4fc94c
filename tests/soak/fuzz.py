"""Throws spoiled files and bodies at a running app: `python -m tests.soak.fuzz --inputs 10000 --seed 1`.

It must answer each in time and never with a server error, keep no file, and not grow. Prints a table and, as the last
line, JSON; the exit status is 1 when something was found. `--only N` repeats input N of that seed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from omni_app.ui.launch import UTTERANCES
from tests.soak import ways_in
from tests.soak.app import App, running
from tests.soak.ways_in import Input

AT_ONCE = 4
MOST_SECONDS = 45.0
"""An input that takes longer hangs; the app itself gives a file 30 s."""
MOST_GROWTH_MB = 60.0
UTTERANCES_KEPT = 256
"""Recordings that may wait for their turn."""
RUN = "gradio_api/run/ask"
"""Gradio's way for quick events, which answers every refusal of a function with 500 and JSON."""
STREAM_SECONDS = 4.0
"""How long a stream is listened to that lasts as long as its listener."""


@dataclass
class Findings:
    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    bad: list[dict[str, Any]] = field(default_factory=list)
    slowest: float = 0.0
    rss_mb: list[float] = field(default_factory=list)
    """After each tenth of the inputs."""
    left: list[str] = field(default_factory=list)

    @property
    def growth_mb(self) -> float:
        """Over the second half: until then codecs, caches and allocators take what room they keep."""
        return self.rss_mb[-1] - self.rss_mb[len(self.rss_mb) // 2]

    @property
    def problems(self) -> list[str]:
        told = [f"input {one['input']} ({one['target']}): {one['what']}" for one in self.bad]
        told += [f"left behind: {name}" for name in self.left]
        return told + ([f"grew by {self.growth_mb:.0f} MB"] if self.growth_mb > MOST_GROWTH_MB else [])


def made(seed: int, number: int) -> Input:
    """Input `number` of a seed."""
    return ways_in.made(random.Random(f"{seed}/{number}"))


async def fuzz(app: App, numbers: range, seed: int) -> Findings:
    found, began, queue = Findings(), time.monotonic(), iter(numbers)
    # a refusal may close its connection, and the next request must not be sent into that
    alone = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=app.url, timeout=MOST_SECONDS, trust_env=False, limits=alone) as client:
        await client.get("/", headers={"accept": "text/html"})

        async def worker() -> None:
            for number in queue:
                await _throw(client, number, made(seed, number), found)
                if (number + 1 - numbers.start) % max(1, len(numbers) // 10) == 0:
                    found.rss_mb.append(round(app.holdings().rss_mb, 1))

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(worker())
        alive = await client.get("/health")
    if alive.status_code != 200:
        found.bad.append({"input": numbers.stop, "target": "health", "what": str(alive.status_code)})
    found.seconds = time.monotonic() - began
    found.left = _left(app)
    return found


async def _throw(client: httpx.AsyncClient, number: int, one: Input, found: Findings) -> None:
    began = time.monotonic()
    try:
        async with asyncio.timeout(MOST_SECONDS):
            status, what = await _answer(client, one)
    except httpx.LocalProtocolError:
        status, what = 400, "not sent: this client refuses to"
    except (httpx.TransportError, TimeoutError) as error:
        status, what = 0, f"{type(error).__name__} after {time.monotonic() - began:.0f} s"
    found.slowest = max(found.slowest, time.monotonic() - began)
    refused = (one.then and '"success":false' in what.replace(" ", "")) or "event: error" in what
    refused = refused or (one.path == RUN and status == 500 and what.startswith('{"error":'))
    found.statuses[f"{one.target} {'refused' if refused else status}"] += 1
    if status == 0 or (status >= 500 and not refused):
        found.bad.append({"input": number, "target": one.target, "what": f"{status} {what[:200]}"})


async def _answer(client: httpx.AsyncClient, one: Input) -> tuple[int, str]:
    """Status and text; for what Gradio answers at a second address, those of that one."""
    async with client.stream(one.method, one.path, content=one.content, headers=one.headers) as answer:
        text = await _text(answer, STREAM_SECONDS if one.lasting else MOST_SECONDS)
    if not one.then or answer.status_code != 200:
        return answer.status_code, text
    async with client.stream("GET", one.then.format(**json.loads(text))) as answer:
        return answer.status_code, await _text(answer, MOST_SECONDS)


async def _text(answer: httpx.Response, seconds: float) -> str:
    """What comes until the end of the answer, or of the event that it is about."""
    text = bytearray()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            async for piece in answer.aiter_bytes():
                text += piece
                if b"close_stream" in piece:
                    break
    return text.decode(errors="replace")


def _left(app: App) -> list[str]:
    """Recordings beyond those that may wait, and all else."""
    left = app.leftovers()
    waiting = [path for path in left if UTTERANCES in path.parts]
    others = [path for path in left if UTTERANCES not in path.parts]
    return [str(path.relative_to(app.data.parent)) for path in waiting[UTTERANCES_KEPT:] + others]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int)
    given = parser.parse_args()
    numbers = range(given.inputs) if given.only is None else range(given.only, given.only + 1)
    with running() as app:
        found = asyncio.run(fuzz(app, numbers, given.seed))
    for name, count in sorted(found.statuses.items()):
        print(f"{name:24} {count:7}")
    print("\n".join(found.problems[:50]) or "nothing found")
    figures = {"seconds": round(found.seconds, 1), "slowest_s": round(found.slowest, 2)}
    figures |= {"rss_mb": found.rss_mb, "statuses": found.statuses, "problems": found.problems}
    print(json.dumps({"inputs": len(numbers), "seed": given.seed, **figures}))
    sys.exit(bool(found.problems))


if __name__ == "__main__":
    main()
