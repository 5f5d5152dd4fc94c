from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest

from omni_app.engines.builtin.clauses import ClauseSplitter
from omni_app.engines.builtin.pacing import Pace, Turns

TEXT = (
    "Of course! Paris is the capital of France, and it lies on the river Seine. It has about two million people, and "
    "many more live around it. You can visit the Louvre, the Eiffel Tower, and a lot of small cafes. If you have only "
    "one day, start early in the morning at the old church and walk west along the river until you reach the tower. "
)


@dataclass
class FakeClock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def play(rtf: float, believed_rtf: float, seconds_per_char: float = 0.065, chars_per_second: float = 250) -> float:
    """The longest silence in the middle of TEXT spoken by a model of the given speed, on a clock of our own."""
    clock = FakeClock()
    pace, splitter = Pace(clock, believed_rtf), ClauseSplitter()
    began, fed, worst_gap = clock.now, 0, 0.0
    while not splitter.exhausted:
        written = min(len(TEXT), int((clock.now - began) * chars_per_second))
        splitter.feed(TEXT[fed:written])
        fed = written
        if fed == len(TEXT):
            splitter.finish()
        if pace.started:
            clause = splitter.take(pace.limit_chars(), pace.must_hurry(splitter.pending_chars))
        else:
            clause = splitter.take_first()
        if clause is None:
            clock.now += 0.01
            continue
        seconds = len(clause.text) * seconds_per_char
        clock.now += seconds * rtf
        if pace.dry_at is not None:
            worst_gap = max(worst_gap, clock.now - pace.dry_at)
        pace.record(len(clause.text), seconds, seconds * rtf)
    return worst_gap


@pytest.mark.parametrize("rtf", [0.01, 0.3, 0.5, 0.65])
def test_no_gap_where_the_model_keeps_up(rtf: float) -> None:
    assert play(rtf, believed_rtf=rtf) <= 0.1


@pytest.mark.parametrize(("rtf", "believed"), [(0.5, 0.3), (0.3, 0.8)])
def test_no_gap_when_the_measurement_was_off(rtf: float, believed: float) -> None:
    assert play(rtf, believed) <= 0.1


def test_no_gap_while_the_language_model_is_slow() -> None:
    assert play(0.4, 0.4, chars_per_second=25) <= 0.1


def test_the_simulation_can_find_a_gap() -> None:
    assert play(1.5, 1.5) > 0.5


def test_limit_follows_what_is_buffered() -> None:
    clock = FakeClock()
    pace = Pace(clock, rtf=0.5, seconds_per_char=0.05)
    pace.record(40, 2.0, 1.0)
    assert pace.buffered_seconds() == pytest.approx(2.0)
    assert pace.limit_chars() == int(2.0 / 1.5 / (0.5 * 0.05))
    clock.now += 1.9
    assert pace.limit_chars() == 30
    clock.now += 10
    assert pace.buffered_seconds() == 0.0


def test_waiting_ends_when_what_is_pending_must_be_made() -> None:
    pace = Pace(FakeClock(), rtf=0.5, seconds_per_char=0.05)
    pace.record(40, 2.0, 1.0)
    assert not pace.must_hurry(40)
    assert pace.seconds_to_wait(40) == pytest.approx(2.0 - 40 * 0.5 * 0.05 * 1.5 - 0.2)
    assert pace.must_hurry(60)


def test_a_few_letters_are_never_hurried() -> None:
    pace = Pace(FakeClock(), rtf=0.5)
    assert not pace.must_hurry(5)


def test_after_a_gap_the_buffer_starts_anew() -> None:
    clock = FakeClock()
    pace = Pace(clock, rtf=0.5)
    pace.record(20, 1.0, 0.5)
    clock.now += 5
    pace.record(20, 1.0, 0.5)
    assert pace.buffered_seconds() == pytest.approx(1.0)


def test_the_most_urgent_is_served_first() -> None:
    turns = Turns()
    order: list[str] = []
    queued: set[str] = set()
    looked = threading.Condition()

    def speak(name: str, dry_at: float) -> None:
        def looks() -> bool:
            with looked:
                queued.add(name)
                looked.notify_all()
            return False

        with turns.turn(dry_at, looks) as ours:
            assert ours
            order.append(name)

    with turns.turn(0.0, lambda: False):
        threads = [threading.Thread(target=speak, args=args) for args in (("late", 9.0), ("soon", 1.0), ("mid", 5.0))]
        for thread in threads:
            thread.start()
        with looked:
            assert looked.wait_for(lambda: len(queued) == 3, timeout=30)
    for thread in threads:
        thread.join()
    assert order == ["soon", "mid", "late"]


def test_cancelled_while_waiting_leaves_the_queue() -> None:
    turns = Turns()
    with turns.turn(0.0, lambda: False) as first, turns.turn(1.0, lambda: True) as second:
        assert first
        assert not second
    with turns.turn(2.0, lambda: True) as third:
        assert third, "a free model is handed out at once"
