from __future__ import annotations

from pathlib import Path

import pytest

from omni_app.engines.builtin import speech_speed
from omni_app.engines.builtin.speech_speed import Speed, measured, record_path, thread_counts


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


def test_a_slow_machine_is_remembered_as_slow(tmp_path: Path) -> None:
    assert not measured(tmp_path, lambda _: 1.2).keeps_up
    assert not measured(tmp_path, must_not_measure).keeps_up


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


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}'])
def test_damaged_record_is_measured_anew(tmp_path: Path, content: str) -> None:
    record_path(tmp_path).write_text(content)
    assert measured(tmp_path, lambda _: 0.3) == Speed(1, 0.3)


def test_record_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert measured(tmp_path / "cache", lambda _: 0.3) == Speed(1, 0.3)
