"""Real browsers under load: each asks on the page, hears the answer to its end through its player, asks again."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from playwright.sync_api import Error, expect

from benchmarks.browser import Visitor, chromium
from tests.scripted import RATE

PATIENCE_MS = 120_000
QUESTIONS = 8
"""After so many a new conversation begins, as people do."""
TOLERANCE_SECONDS = 0.1


@dataclass
class Onlooker:
    """One browser, and what became of its questions. Belongs to one thread: Playwright's is not to be shared."""

    url: str
    question: str
    speech_bytes: int
    """Of the speech of the whole answer."""
    answers: Counter[str] = field(default_factory=Counter)
    """By what was wrong with them; whole ones under the empty string."""

    def talk(self, until: float) -> None:
        """Until that moment of `time.monotonic`."""
        with chromium() as browser:
            visitor = Visitor(browser, self.url)
            visitor.page.set_default_timeout(PATIENCE_MS)
            while time.monotonic() < until:
                visitor.page.locator("#new").click()
                expect(visitor.page.locator("#chat [data-testid=user]")).to_have_count(0, timeout=PATIENCE_MS)
                for number in range(1, QUESTIONS + 1):
                    self.answers[self._flaw(visitor, number)] += 1
            self.answers.update(visitor.problems)
            visitor.close()

    def _flaw(self, visitor: Visitor, number: int) -> str:
        try:
            return self._ask(visitor, number)
        except (AssertionError, Error) as error:
            return str(error).strip().splitlines()[0]

    def _ask(self, visitor: Visitor, number: int) -> str:
        """One question and its answer to the last sound; returns what was wrong with it, or nothing."""
        page = visitor.page
        page.evaluate("window.__peaks.length = 0")
        asked = visitor.ask(self.question)
        expect(page.locator("#chat .figures")).to_have_count(number, timeout=PATIENCE_MS)
        expect(page.get_by_role("button", name="Stop", exact=True)).to_be_hidden(timeout=PATIENCE_MS)
        texts = [text for text in visitor.answers() if text.startswith("echo")]
        if texts != [f"echo: {self.question}"] * number:
            return f"other words: {texts[-1:]}"
        heard, spoken = visitor.sound(asked), self.speech_bytes / 2 / RATE
        silences = sum(length for _, length in heard.gaps) if heard else 0.0
        sounded = heard.seconds - silences if heard else 0.0
        return "" if abs(sounded - spoken) < TOLERANCE_SECONDS else f"{sounded:.1f} s of speech heard, not {spoken:.1f}"
