"""Throws spoiled files and bodies at a running app: `python -m tests.soak.fuzz --inputs 10000 --seed 1`.

It must answer each in time and never with a server error, keep no file, and not grow. Prints a table and, as the last
line, JSON; the exit status is 1 when something was found. `--only N` repeats input N of that seed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.soak import mutate
from tests.soak.app import App, running

AT_ONCE = 4
MOST_SECONDS = 45.0
"""An input that takes longer hangs; the app itself gives a file 30 s."""
MOST_GROWTH_MB = 60.0
UTTERANCES_KEPT = 256
"""Recordings that may wait for their turn."""
TOOL = "gradio_api/call/ask"
SEND_JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Input:
    target: str
    path: str
    content: bytes
    headers: dict[str, str]


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
    dice = random.Random(f"{seed}/{number}")
    target = dice.choice(("chat body", "chat file", "recording", "tool"))
    whole = target in ("chat body", "tool")
    kind, content = dice.choice(mutate.media()) if whole else mutate.spoiled_file(dice)
    body = mutate.question(kind, content, stream=dice.random() < 0.5)
    if target == "recording":
        return Input(target, "gradio_api/utterance", content, {"content-type": "application/octet-stream"})
    if target == "tool":
        url = body["messages"][1]["content"][1][mutate.KEY_OF[kind]]["url"]
        raw = mutate.spoiled_body(dice, {"data": ["what is it", url, True, "low"]})
        return Input(target, TOOL, raw, SEND_JSON)
    raw = json.dumps(body).encode() if target == "chat file" else mutate.spoiled_body(dice, body)
    return Input(target, "v1/chat/completions", raw, SEND_JSON)


async def fuzz(app: App, numbers: range, seed: int) -> Findings:
    found, began, queue = Findings(), time.monotonic(), iter(numbers)
    async with httpx.AsyncClient(base_url=app.url, timeout=MOST_SECONDS, trust_env=False) as client:
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
        answer = await client.post(one.path, content=one.content, headers=one.headers)
        if one.path == TOOL and answer.status_code == 200:  # Gradio answers such a call at a second address
            answer = await client.get(f"{TOOL}/{answer.json()['event_id']}")
        status, what = answer.status_code, answer.text[:200]
    except httpx.TransportError as error:
        status, what = 0, f"{type(error).__name__} after {time.monotonic() - began:.0f} s"
    found.slowest = max(found.slowest, time.monotonic() - began)
    refused = one.path == TOOL and "event: error" in what
    found.statuses[f"{one.target} {'refused' if refused else status}"] += 1
    if status == 0 or status >= 500:
        found.bad.append({"input": number, "target": one.target, "what": f"{status} {what}"})


def _left(app: App) -> list[str]:
    waiting = [path for path in app.leftovers() if path.parent.name == "utterances"]
    others = [path for path in app.leftovers() if path.parent.name != "utterances"]
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
