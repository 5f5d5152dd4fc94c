"""Many at once, for long: `python -m tests.soak.load --seconds 600 --text-users 32 --speech-users 16`.

Text users talk to the builtin engine; speech users to a scripted one that speaks as fast as people listen, and with
`--browsers 2` so many real Chromiums sit before the page of that one and listen to the end. Every answer
must be whole, none may fail, and over the second half nothing may grow. Prints a table and, as the last line, JSON; the
exit status is 1 when something was found.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import httpx

from tests.scripted import tone
from tests.soak.app import App, Holdings, running
from tests.soak.browsers import Onlooker

WORD_SECONDS = 0.2
"""How long the scripted engine speaks, and takes, for a word."""
TEXT_TOKENS = 16
PATIENCE_SECONDS = 300.0
LOOK_EVERY_SECONDS = 1.0
MOST_GROWTH = Holdings(rss_mb=40, threads=4, open_files=16, temporary_files=8, temporary_mb=2)
"""Between the means of the third and the fourth quarter; a leak of one thing an answer is far above it."""
SPOKEN = "one two three four five six seven eight nine ten"


@dataclass
class Crowd:
    """The users of one app, and what became of their questions."""

    app: App
    users: int
    speech: bool
    answers: Counter[str] = field(default_factory=Counter)
    """By what was wrong with them; whole ones under the empty string."""
    seconds: list[float] = field(default_factory=list)
    held: list[Holdings] = field(default_factory=list)

    async def talk(self, until: float) -> None:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch())
            talking = [group.create_task(self._user(until)) for _ in range(self.users)]
            await asyncio.wait(talking)
            watching.cancel()

    async def _user(self, until: float) -> None:
        async with httpx.AsyncClient(base_url=self.app.url, timeout=PATIENCE_SECONDS, trust_env=False) as client:
            while time.monotonic() < until:
                began = time.monotonic()
                try:
                    problem = await self._ask(client)
                except (httpx.HTTPError, TimeoutError) as error:
                    problem = type(error).__name__
                self.seconds.append(time.monotonic() - began)
                self.answers[problem] += 1

    async def _ask(self, client: httpx.AsyncClient) -> str:
        """One question and its whole answer; returns what was wrong with it, or nothing."""
        body: dict[str, Any] = {"messages": [{"role": "user", "content": SPOKEN}], "stream": True}
        body |= (
            {"modalities": ["text", "audio"]} if self.speech else {"modalities": ["text"], "max_tokens": TEXT_TOKENS}
        )
        async with asyncio.timeout(PATIENCE_SECONDS), client.stream("POST", "v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                return f"{answer.status_code} {(await answer.aread())[:120].decode(errors='replace')}"
            return self._flaw([chunk async for chunk in _chunks(answer)])

    def _flaw(self, chunks: list[Any]) -> str:
        if not chunks or chunks[-1] != "[DONE]":
            return "ended early"
        told = [json.loads(chunk) for chunk in chunks[:-1]]
        if failed := next((one for one in told if "error" in one), None):
            return str(failed["error"]["message"])[:120]
        pieces = [(one.get("modality"), choice) for one in told for choice in one["choices"]]
        if not any(choice["finish_reason"] for _, choice in pieces):
            return "no finish reason"
        text = "".join(choice["delta"].get("content") or "" for kind, choice in pieces if kind != "audio").strip()
        if not self.speech:
            return "" if text else "no text"
        sound = [choice["delta"].get("content") or "" for kind, choice in pieces if kind == "audio"]
        return _spoken_flaw(text, sum(_samples(piece) for piece in sound if piece))

    async def _watch(self) -> None:
        with suppress(asyncio.CancelledError):
            while True:
                self.held.append(await asyncio.to_thread(self.app.holdings))
                await asyncio.sleep(LOOK_EVERY_SECONDS)

    def growth(self) -> dict[str, float]:
        """How much more of each was held in the last quarter than in the one before."""
        quarter = max(1, len(self.held) // 4)
        last, before = self.held[-quarter:], self.held[-2 * quarter : -quarter] or self.held
        return {one.name: round(_mean(last, one.name) - _mean(before, one.name), 2) for one in fields(Holdings)}

    def found(self) -> list[str]:
        grown, most = self.growth(), asdict(MOST_GROWTH)
        told = flaws(self.answers)
        told += [f"{name} grew by {grown[name]:.1f}" for name in grown if grown[name] > most[name]]
        return told if self.answers[""] or not self.users else [*told, "nothing was answered"]


async def _chunks(answer: httpx.Response) -> AsyncIterator[str]:
    async for line in answer.aiter_lines():
        if line.startswith("data:"):
            yield line.removeprefix("data:").strip()


def _samples(wav: str) -> int:
    return (len(base64.b64decode(wav)) - 44) // 2


def _speech_bytes() -> int:
    return len(f"echo: {SPOKEN}".split()) * len(tone(WORD_SECONDS))


def _spoken_flaw(text: str, samples: int) -> str:
    words, expected = f"echo: {SPOKEN}", _speech_bytes() // 2
    if text != words:
        return f"other words: {text[:80]}"
    return "" if samples == expected else f"{samples} samples of speech, not {expected}"


def _mean(held: list[Holdings], name: str) -> float:
    return statistics.fmean(getattr(one, name) for one in held)


async def load(crowds: dict[str, Crowd], seconds: float, onlookers: Sequence[Onlooker] = ()) -> None:
    until = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for onlooker in onlookers:
            group.create_task(asyncio.to_thread(onlooker.talk, until))
        for crowd in crowds.values():
            group.create_task(crowd.talk(until))


def flaws(answers: Counter[str]) -> list[str]:
    return [f"{count} x {flaw}" for flaw, count in answers.items() if flaw]


def figures(crowd: Crowd) -> dict[str, Any]:
    taken = sorted(crowd.seconds) or [0.0]
    return {
        "users": crowd.users, "whole": crowd.answers[""], "median_s": round(statistics.median(taken), 2),
        "slowest_s": round(taken[-1], 2), "last": asdict(crowd.held[-1]), "growth": crowd.growth(),
        "found": crowd.found(),
    }  # fmt: skip


def told_of(onlookers: Sequence[Onlooker]) -> dict[str, Any]:
    answers = sum((one.answers for one in onlookers), Counter[str]())
    found = flaws(answers)
    found += [f"browser {number} heard nothing whole" for number, one in enumerate(onlookers) if not one.answers[""]]
    return {"users": len(onlookers), "whole": answers[""], "found": found}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--text-users", type=int, default=32)
    parser.add_argument("--speech-users", type=int, default=16)
    parser.add_argument("--browsers", type=int, default=0)
    given = parser.parse_args()
    with ExitStack() as stack:
        crowds, onlookers = {}, list[Onlooker]()
        if given.text_users:
            crowds["text"] = Crowd(stack.enter_context(running("builtin")), given.text_users, speech=False)
        if given.speech_users or given.browsers:
            app = stack.enter_context(running("scripted", WORD_SECONDS))
            crowds["speech"] = Crowd(app, given.speech_users, speech=True)
            onlookers = [Onlooker(app.url, SPOKEN, _speech_bytes()) for _ in range(given.browsers)]
        asyncio.run(load(crowds, given.seconds, onlookers))
        told = {name: figures(crowd) for name, crowd in crowds.items()}
    if onlookers:
        told["browsers"] = told_of(onlookers)
    for name, one in told.items():
        median = f", median {one['median_s']} s" if "median_s" in one else ""
        print(f"{name}: {one['users']} users, {one['whole']} whole answers{median}")
        for kind, grown in one.get("growth", {}).items():
            print(f"  {kind:16} {one['last'][kind]:10.1f}  {grown:+8.2f} over the last half")
        print("\n".join(f"  FOUND {problem}" for problem in one["found"]) or "  nothing found")
    print(json.dumps({"seconds": given.seconds, **told}))
    sys.exit(any(one["found"] for one in told.values()))


if __name__ == "__main__":
    main()
