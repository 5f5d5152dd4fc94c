"""What a visitor of the page does and waits for, in words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Route, expect

from benchmarks.browser import Visitor

ANSWERED = re.compile("real-time factor|tokens/s")
WAITED = """() => {
  const {stats, rate} = [...document.querySelectorAll('#voice, #voice *')].find((at) => at.speechPlayer).speechPlayer;
  return (stats.silentSamples || 0) / rate;
}"""
"""Seconds for which the last speech had begun and the player had nothing to play."""
LIVE = "window.tracks.filter((track) => track.readyState === 'live').length"


def bot(visitor: Visitor) -> Any:
    return visitor.page.locator("#chat [data-testid=bot]")


def user(visitor: Visitor) -> Any:
    return visitor.page.locator("#chat [data-testid=user]")


def finished(visitor: Visitor, answers: int = 1, seconds: float = 20) -> None:
    """Wait until that many answers have their figures."""
    expect(visitor.page.locator("#chat .figures")).to_have_count(answers, timeout=seconds * 1000)


def until(visitor: Visitor, condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        visitor.page.wait_for_timeout(50)
    raise AssertionError("it did not come true within ten seconds")


def status(visitor: Visitor) -> Any:
    return visitor.page.locator("#voice [role=status]")


def press(visitor: Visitor, name: str) -> None:
    visitor.page.get_by_role("button", name=name, exact=True).first.click()


def begin_anew(visitor: Visitor) -> None:
    press(visitor, "New conversation")
    expect(user(visitor)).to_have_count(0)


def converse(visitor: Visitor, *texts: str) -> Any:
    """A conversation for each, of which the last stays open; returns the list of them."""
    for number, text in enumerate(texts):
        if number:
            begin_anew(visitor)
        visitor.ask(text)
        finished(visitor)
    return visitor.page.locator("#history label")


def silent(visitor: Visitor, seconds: float = 20) -> None:
    expect(visitor.page.get_by_role("button", name="Stop", exact=True)).to_be_hidden(timeout=seconds * 1000)


def hear_whole(visitor: Visitor, text: str) -> None:
    """Ask a scripted engine that in a new conversation until it is heard without a gap, three times at most: on a busy
    machine the player learns to begin later. No gap is ever heard while there is something to play."""
    gaps: list[float] = []
    while 0.0 not in gaps and len(gaps) < 3:
        sent = visitor.ask(text)
        finished(visitor, len(gaps) + 1)
        silent(visitor)
        expect(bot(visitor).first).to_have_text(f"echo: {text}")
        visitor.page.wait_for_timeout(300)
        sound = visitor.sound(after=sent)
        assert sound is not None
        silence = sum(length for _, length in sound.gaps)
        assert silence <= visitor.page.evaluate(WAITED) + 0.02 * len(sound.gaps)
        assert sound.seconds - silence == pytest.approx(len(f"echo: {text}".split()) * 0.2, abs=0.15)
        gaps.append(sound.longest_gap)
    assert gaps[-1] == 0.0


def held(visitor: Visitor, act: Callable[[], object]) -> Route:
    """What the page asks of the server when somebody does that, on its way until it is told to go on."""
    waiting: list[Route] = []
    visitor.page.route("**/queue/join*", lambda route: waiting.append(route), times=1)
    act()
    until(visitor, lambda: bool(waiting))
    return waiting.pop()


def button(visitor: Visitor, name: str) -> Any:
    return visitor.page.get_by_role("button", name=name, exact=True).first


def microphones(visitor: Visitor) -> int:
    return int(visitor.page.evaluate(LIVE))
