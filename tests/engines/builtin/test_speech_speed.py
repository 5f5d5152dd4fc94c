from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from omni_app.engines.builtin import speech_speed
from omni_app.engines.builtin.speech_speed import Clocks, Speed, measured, record_path, thread_counts


def must_not_measure(_: int) -> float:
    raise AssertionError("measured although it was remembered")


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech_speed, "usable_cores", lambda: 2)


@pytest.mark.parametrize(("cores", "expected"), [(1, (1,)), (2, (1,)), (4, (1, 2)), (8, (1, 2, 4)), (64, (1, 2, 4))])
def test_a_core_stays_free(cores: int, expected: tuple[int, ...]) -> None:
    assert thread_counts(cores) == expected


def test_measured_once(tmp_path: Path) -> None:
    assert measured(tmp_path, lambda _: 0.3) == Speed(1, 0.3)
    assert measured(tmp_path, must_not_measure) == Speed(1, 0.3)


def test_a_busy_moment_is_not_remembered(tmp_path: Path) -> None:
    rtfs = iter([1.4, 0.45])
    assert measured(tmp_path, lambda _: next(rtfs)) == Speed(1, 0.45)


def clocks(own_share: float, at: float = 0.0) -> Clocks:
    """Of a machine that gives this process so much of one processor, so many seconds after the epoch."""
    wall, work = itertools.count(0.0, 1.0), itertools.count(0.0, own_share)
    return Clocks(lambda: next(wall), lambda: next(work), lambda: at)


def test_a_slow_machine_is_remembered_as_slow(tmp_path: Path) -> None:
    speed = measured(tmp_path, lambda _: 1.2, clocks(own_share=0.95))
    assert (speed.keeps_up, speed.disturbed) == (False, False)
    assert measured(tmp_path, must_not_measure, clocks(1.0, at=10**9)) == speed


def test_a_busy_machine_is_measured_again_in_an_hour(tmp_path: Path) -> None:
    speed = measured(tmp_path, lambda _: 1.2, clocks(own_share=0.4))
    assert (speed.keeps_up, speed.disturbed) == (False, True)
    assert measured(tmp_path, must_not_measure, clocks(1.0, at=3500)) == speed
    assert measured(tmp_path, lambda _: 0.3, clocks(1.0, at=3700)) == Speed(1, 0.3)
    assert measured(tmp_path, must_not_measure, clocks(1.0, at=10**9)) == Speed(1, 0.3)


def test_what_keeps_up_on_a_busy_machine_is_remembered(tmp_path: Path) -> None:
    assert measured(tmp_path, lambda _: 0.7, clocks(own_share=0.4)).keeps_up
    assert measured(tmp_path, must_not_measure) == Speed(1, 0.7)


def test_more_threads_only_where_they_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech_speed, "usable_cores", lambda: 8)
    assert measured(tmp_path, {1: 0.40, 2: 0.25, 4: 0.24}.__getitem__) == Speed(2, 0.25)


def test_another_machine_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(tmp_path, lambda _: 0.3)
    monkeypatch.setattr(speech_speed, "_cpu_model", lambda: "another processor")
    assert measured(tmp_path, lambda _: 0.2) == Speed(1, 0.2)
    monkeypatch.undo()
    monkeypatch.setattr(speech_speed, "usable_cores", lambda: 2)
    assert measured(tmp_path, must_not_measure) == Speed(1, 0.3)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}', '{"MACHINE": 5}', '{"MACHINE": {"threads": 1}}'])
def test_damaged_record_is_measured_anew(tmp_path: Path, content: str) -> None:
    record_path(tmp_path).write_text(content.replace("MACHINE", speech_speed._machine()))
    assert measured(tmp_path, lambda _: 0.3) == Speed(1, 0.3)


def test_record_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert measured(tmp_path / "cache", lambda _: 0.3) == Speed(1, 0.3)
