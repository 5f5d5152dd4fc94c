"""What a visitor feels, on this machine, with the builtin engine: `python -m benchmarks.talk [--out FILE.json]`.

Starts the app as a new process, opens it in a real browser, and measures there. Goals are for a 2-core machine.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from playwright.sync_api import sync_playwright

from benchmarks.browser import Visitor, launched

QUESTIONS = [
    "What is the capital of France?",
    "How many legs does a spider have?",
    "What colour is a ripe banana?",
    "What do bees make?",
    "Which planet is closest to the sun?",
]
LONG_QUESTION = "Why is the sky blue? Answer in two sentences."
SPOKEN_QUESTION = "Hello there. I would like to know which planet in our solar system is the largest one of them all."
ANIMALS = ["horse", "tiger", "eagle", "snake", "whale", "zebra", "camel", "goose"]
ANSWER_SECONDS = 180


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    value: float
    goal: float
    unit: str
    detail: str = ""

    @property
    def met(self) -> bool:
        return self.value <= self.goal


class PeakMemory:
    """Samples the resident memory of a process tree five times a second; shared pages are counted once (PSS)."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            with contextlib.suppress(psutil.Error):
                family = [self._process, *self._process.children(recursive=True)]
                self.peak_bytes = max(self.peak_bytes, sum(member.memory_full_info().pss for member in family))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


class RunningApp:
    """`python app.py` on a free port with an empty data folder and the models that are already there."""

    def __init__(self, data: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self._log = (data / "app.log").open("w")
        self.began = time.monotonic()
        command = [sys.executable, "app.py", "--port", str(self.port), "--engine", "builtin", "--data-dir", str(data)]
        self.process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)
        self.memory = PeakMemory(self.process.pid)

    def wait(self, path: str, limit_seconds: float = 120) -> float:
        """Seconds from the process's start until `path` answers 200."""
        while time.monotonic() - self.began < limit_seconds:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(self.url + path, timeout=5).status_code == 200:
                    return time.monotonic() - self.began
            time.sleep(0.1)
        raise TimeoutError(f"/{path} did not answer within {limit_seconds} s")

    def close(self) -> None:
        self.memory.close()
        self.process.terminate()
        self.process.wait(30)
        self._log.close()


def finish_answer(visitor: Visitor, answers: int) -> None:
    """Until that many answers have their figures and the last sound has faded."""
    visitor.page.wait_for_function(
        "count => document.querySelectorAll('#chat .figures').length >= count",
        arg=answers,
        timeout=ANSWER_SECONDS * 1000,
    )
    visitor.page.get_by_role("button", name="Stop", exact=True).wait_for(state="hidden", timeout=ANSWER_SECONDS * 1000)
    visitor.page.wait_for_timeout(300)


FIRST_TEXT = """([before, sent]) => new Promise((resolve) => {
  const look = () => {
    const bubbles = document.querySelectorAll('#chat [data-testid=bot]');
    const text = bubbles.length > before ? bubbles[before].innerText.trim() : '';
    if (text && text !== '…') resolve(performance.now() / 1000 - sent); else requestAnimationFrame(look);
  };
  look();
})"""


@dataclass(frozen=True, slots=True)
class Asked:
    first_text: float
    first_sound: float
    engine_first_sound: float
    silence: float
    """Seconds that the player had to fill because speech was not there in time."""
    speech: float


def ask(visitor: Visitor, question: str, answers: int) -> Asked:
    before = visitor.page.locator("#chat [data-testid=bot]").count()
    sent = visitor.ask(question)
    first_text = visitor.page.evaluate(FIRST_TEXT, [before, sent])
    finish_answer(visitor, answers)
    return measured(visitor, sent, first_text)


def measured(visitor: Visitor, sent: float, first_text: float = 0.0) -> Asked:
    sound = visitor.sound(after=sent)
    if sound is None:
        raise RuntimeError("nothing was heard")
    stats = visitor.page.evaluate(
        "(() => { const p = [...document.querySelectorAll('*')].find((e) => e.speechPlayer).speechPlayer;"
        " return {...p.stats, rate: p.rate}; })()"
    )
    line = visitor.page.locator("#chat .figures").last.inner_text()
    engine = float(re.search(r"first sound ([\d.]+) s", line).group(1))  # type: ignore[union-attr]
    return Asked(
        first_text, sound.start - sent, engine, stats["silentSamples"] / stats["rate"], stats["played"] / stats["rate"]
    )


def typed_figures(visitor: Visitor) -> list[Figure]:
    asked = [ask(visitor, question, number) for number, question in enumerate(QUESTIONS, 1)]
    long = ask(visitor, LONG_QUESTION, len(QUESTIONS) + 1)
    overheads = [one.first_sound - one.engine_first_sound for one in asked]
    text, sound = [one.first_text for one in asked], [one.first_sound for one in asked]
    return [
        Figure(
            "typed question: first text in the browser", statistics.median(text), 1.0, "s", f"worst {max(text):.2f}"
        ),
        Figure(
            "typed question: first sound in the browser", statistics.median(sound), 2.5, "s", f"worst {max(sound):.2f}"
        ),
        Figure(
            "gaps inside the speech of a long answer", long.silence * 1000, 100, "ms", f"{long.speech:.0f} s of speech"
        ),
        Figure(
            "added to first sound by the app", statistics.median(overheads) * 1000, 150, "ms", "browser less engine"
        ),
    ]


def spoken_figure(playwright: Any, url: str, folder: Path) -> Figure:
    recording, seconds = spoken_question(folder)
    browser = launched(playwright, microphone=recording)
    visitor = Visitor(browser, url)
    visitor.page.get_by_role("button", name="Talk", exact=True).click()
    visitor.page.wait_for_timeout(seconds * 1000 + 300)
    sent = visitor.now()
    visitor.page.get_by_role("button", name="Send", exact=True).click()
    finish_answer(visitor, 1)
    heard = visitor.page.locator("#chat .heard").first.inner_text()
    value = measured(visitor, sent).first_sound
    browser.close()
    return Figure(f"spoken {seconds:.0f} s question: first sound", value, 5.0, "s", heard)


def spoken_question(folder: Path) -> tuple[Path, float]:
    """A WAV file of a question in the builtin engine's own voice, and its length in seconds."""
    path = folder / "question.wav"
    code = (
        "import sys; from omni_app.settings import Settings; from omni_app.engines.builtin.speak import Speaker;"
        "from omni_app.media.audio import write_wav; s = Speaker(Settings(builtin_speech='kokoro')); s.load();"
        "write_wav(__import__('pathlib').Path(sys.argv[1]), s.synthesize(sys.argv[2], 'jm_kumo').tobytes(), 24000)"
    )
    subprocess.run([sys.executable, "-c", code, str(path), SPOKEN_QUESTION], check=True, capture_output=True)
    return path, (path.stat().st_size - 44) / 2 / 24_000


def eight_users_figures(url: str) -> list[Figure]:
    with concurrent.futures.ThreadPoolExecutor(len(ANIMALS)) as pool:
        answers = list(pool.map(lambda animal: one_user(url, animal), ANIMALS))
    mixed = [a for a, (_, text) in zip(ANIMALS, answers, strict=True) if any(b in text for b in ANIMALS if b != a)]
    failed = [a for a, (_, text) in zip(ANIMALS, answers, strict=True) if not text.strip()]
    return [
        Figure("8 users at once: slowest first text", max(first for first, _ in answers), 10.0, "s", "with speech"),
        Figure("8 users at once: failed or mixed up", len(mixed) + len(failed), 0, "answers"),
    ]


def one_user(url: str, animal: str) -> tuple[float, str]:
    """(seconds to first text, whole text) of one streamed answer with speech."""
    question = f"What does a {animal} look like? Say {animal} in your answer."
    messages = [{"role": "user", "content": question}]
    body = {"model": "default", "stream": True, "max_tokens": 60, "messages": messages}
    began, first, text = time.monotonic(), 0.0, ""
    with httpx.stream("POST", url + "v1/chat/completions", json=body, timeout=ANSWER_SECONDS) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                return time.monotonic() - began, ""
            for choice in chunk["choices"] if chunk.get("modality") == "text" else []:
                if piece := choice["delta"].get("content"):
                    first, text = first or time.monotonic() - began, text + piece
    return first, text


def run() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        app = RunningApp(Path(folder))
        try:
            page_seconds = app.wait("")
            yield Figure(
                "process start to page ready", page_seconds, 15, "s", f"engine ready {app.wait('health'):.1f} s"
            )
            browser = launched(playwright)
            visitor = Visitor(browser, app.url)
            yield from typed_figures(visitor)
            browser.close()
            yield spoken_figure(playwright, app.url, Path(folder))
            yield from eight_users_figures(app.url)
            yield Figure("peak memory of everything", app.memory.peak_bytes / 1e9, 1.5, "GB", "app and its children")
        finally:
            app.close()


def table(figures: list[Figure], write: Callable[[str], None] = print) -> None:
    write("| figure | measured | goal | met | |\n| --- | --- | --- | --- | --- |")
    for figure in figures:
        shown, goal = (f"{value:.3g} {figure.unit}" for value in (figure.value, figure.goal))
        write(f"| {figure.name} | {shown} | {goal} | {'yes' if figure.met else 'no'} | {figure.detail} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    figures = list(run())
    print(f"{os.cpu_count()} cores, {platform.machine()}, load before the start {load:.1f}\n")
    table(figures)
    if arguments.out:
        content = {
            "cores": os.cpu_count(),
            "load_before": load,
            "figures": [asdict(f) | {"met": f.met} for f in figures],
        }
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
