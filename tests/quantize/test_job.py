"""A job is found again, queues, fails in words, is cancelled within seconds, and leaves nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from omni_app import jobs
from quantize import environment, folder, job, supervisor
from quantize.errors import BadRequest
from quantize.job import Job, Request, Status
from quantize.progress import Reporter
from quantize.schemes import Recipe
from tests.quantize.job_steps import Command, Stand, begun, made, started, until


def test_request_survives_the_disk(tmp_path: Path) -> None:
    asked = Request("org/model", str(tmp_path / "out"), Recipe("W4A16", "gptq", ("experts",), 8, 64), "samples.jsonl")
    assert job.create(tmp_path / "jobs", asked).request == asked


def test_names_that_cannot_be_told_are_refused_rather_than_lose_the_result_to_its_card(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"no UTF-8.*rename it"):
        made(tmp_path, os.fsdecode(b"mod\xe8le"))
    assert made(tmp_path, "modèle 模型 🗣").request.output == f"{tmp_path}/modèle 模型 🗣"


def test_jobs_are_found_again_newest_first(tmp_path: Path) -> None:
    first, second = made(tmp_path), made(tmp_path)
    assert job.find(tmp_path / "jobs") == [second, first]
    assert job.ahead(second) == [first]
    assert job.ahead(first) == []


def test_runs_and_ends(tmp_path: Path, python_as_worker: Stand) -> None:
    python_as_worker("echo quantizing; exit 0")
    one = made(tmp_path)
    state = supervisor.run(one)
    assert state.status is Status.DONE
    assert one.state == state
    assert one.log() == ["quantizing"]


def test_failure_is_told_in_the_workers_words(tmp_path: Path, python_as_worker: Stand) -> None:
    one = made(tmp_path)
    python_as_worker(f"""echo '{{"error": "The disk ran full."}}' > {one.folder}/outcome.json; exit 1""")
    begun(tmp_path)
    state = supervisor.run(one)
    assert (state.status, state.message) == (Status.FAILED, "The disk ran full.")
    assert not folder.partial(tmp_path / "out").exists()


def test_unexpected_end_shows_the_last_line_of_the_log(tmp_path: Path, python_as_worker: Stand) -> None:
    python_as_worker("echo 'ImportError: no torch' >&2; exit 3")
    assert "ImportError: no torch" in supervisor.run(made(tmp_path)).message


def test_killed_worker_is_told_as_lack_of_memory(tmp_path: Path, python_as_worker: Stand) -> None:
    python_as_worker("kill -9 $$")
    begun(tmp_path)
    state = supervisor.run(made(tmp_path))
    assert state.status is Status.FAILED
    assert "memory ran out" in state.message
    assert not folder.partial(tmp_path / "out").exists()


def test_cancel_ends_the_worker_even_if_it_resists(tmp_path: Path, python_as_worker: Stand, command: Command) -> None:
    python_as_worker(f"trap '' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 1; done")
    one = made(tmp_path)
    process = started(command("run", "--job", one.folder))
    until(lambda: (tmp_path / "pid").exists())
    begun(tmp_path)
    job.cancel(one)
    assert process.wait(60) == 130
    assert one.state.status is Status.CANCELLED
    assert not folder.partial(tmp_path / "out").exists()
    worker = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_second_job_waits_for_the_first(tmp_path: Path, python_as_worker: Stand) -> None:
    python_as_worker(f"touch {tmp_path}/began; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done")
    first, second = made(tmp_path), made(tmp_path, "other")
    threads = [
        threading.Thread(target=subprocess.run, args=([*_python(), str(one.folder)],), kwargs={"cwd": environment.ROOT})
        for one in (first, second)
    ]
    for thread in threads:
        thread.start()
    until(lambda: (tmp_path / "began").exists() and second.attended)
    assert first.state.status is Status.RUNNING
    assert second.state.status is Status.QUEUED
    assert job.ahead(second) == [first]
    (tmp_path / "go").touch()
    for thread in threads:
        thread.join()
    assert [one.state.status for one in (first, second)] == [Status.DONE, Status.DONE]
    assert second.state.started >= first.state.ended


def _python() -> list[str]:
    script = "import sys; from pathlib import Path; from quantize import supervisor, job; "
    return [sys.executable, "-c", script + "supervisor.run(job.Job(Path(sys.argv[1])))"]


def test_dead_job_is_interrupted_and_says_where(tmp_path: Path, python_as_worker: Stand, command: Command) -> None:
    python_as_worker(f"touch {tmp_path}/began; cat > /dev/null")
    one = made(tmp_path)
    Reporter(one.folder / "progress.jsonl")("capture", 7, 20, "")
    process = started(command("run", "--job", one.folder))
    until(lambda: (tmp_path / "began").exists())
    process.send_signal(signal.SIGKILL)
    process.wait()
    state = one.state
    assert state.status is Status.INTERRUPTED
    assert "capture, 7 of 20" in state.message


def test_interrupted_job_starts_again(tmp_path: Path, python_as_worker: Stand) -> None:
    python_as_worker("exit 0")
    one = made(tmp_path)
    one.write_state(job.State(Status.RUNNING, created=1.0))
    assert one.state.status is Status.INTERRUPTED
    job.start(one)
    until(lambda: one.state.status is Status.DONE)


def test_a_job_runs_once(tmp_path: Path, python_as_worker: Stand) -> None:
    python_as_worker("exit 0")
    one = made(tmp_path)
    with one.attend(), pytest.raises(BadRequest, match="running already"):
        supervisor.run(one)
    supervisor.run(one)
    with pytest.raises(BadRequest, match="only one that is not running or done"):
        job.start(one)


def test_a_job_that_is_taken_up_here_waits_like_others_and_is_not_done_twice(
    tmp_path: Path, python_as_worker: Stand, command: Command
) -> None:
    python_as_worker("exit 0")
    one = made(tmp_path)
    supervisor.run(one)
    ended = subprocess.run(command("run", "--job", one.folder), cwd=environment.ROOT, capture_output=True, check=False)
    assert ended.returncode == 1
    assert one.state.status is Status.DONE
    failed = made(tmp_path)
    failed.write_state(job.State(Status.FAILED, created=1.0))
    with (running := made(tmp_path, "other")).attend():
        process = started(command("run", "--job", failed.folder))
        until(lambda: failed.attended)
        assert job.ahead(failed) == [running]
        job.cancel(failed)
        assert process.wait(60) == 130


def test_waiting_job_can_be_cancelled(tmp_path: Path) -> None:
    one = made(tmp_path)
    job.cancel(one)
    assert one.state.status is Status.CANCELLED


def test_cancelling_what_a_power_cut_interrupted_leaves_nothing_half_written(tmp_path: Path) -> None:
    one = made(tmp_path)
    one.write_state(job.State(Status.RUNNING, created=1.0))
    begun(tmp_path)
    job.cancel(one)
    assert one.state.status is Status.CANCELLED
    assert not folder.partial(tmp_path / "out").exists()


def test_a_job_cancelled_before_its_process_is_up_never_runs(
    tmp_path: Path, python_as_worker: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    python_as_worker(f"touch {tmp_path}/began")
    slow = tmp_path / "slow-python"
    wait = f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done"
    slow.write_text(f'#!/bin/sh\n{wait}\n{sys.executable} "$@"\necho $? > {tmp_path}/code\n')
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    one = made(tmp_path)
    job.start(one)
    job.cancel(one)
    (tmp_path / "go").touch()
    until(lambda: (tmp_path / "code").exists() and (tmp_path / "code").read_text() == "130\n", 60)
    assert one.state.status is Status.CANCELLED
    assert not (tmp_path / "began").exists()


def test_cancelling_twice_leaves_nothing(tmp_path: Path, python_as_worker: Stand, command: Command) -> None:
    python_as_worker(f"trap '' TERM; touch {tmp_path}/began; while :; do sleep 1; done")
    one = made(tmp_path)
    process = started(command("run", "--job", one.folder))
    until(lambda: (tmp_path / "began").exists(), 60)
    begun(tmp_path)
    impatient = [threading.Thread(target=job.cancel, args=(one, 60.0)) for _ in range(3)]
    for thread in impatient:
        thread.start()
    for thread in impatient:
        thread.join()
    assert process.wait(60) == 130
    assert one.state.message == "Cancelled; nothing half-written remains."
    assert not folder.partial(tmp_path / "out").exists()


def test_what_a_full_disk_cut_off_is_left_aside(tmp_path: Path, python_as_worker: Stand) -> None:
    one = made(tmp_path)
    (one.folder / "progress.jsonl").write_text('{"stage": "capt')
    Reporter(one.folder / "progress.jsonl")("capture", 7, 20, "")
    Reporter(one.folder / "progress.jsonl")("capture", 8, 20, "")
    assert [step.done for step in one.steps()] == [8]
    assert [step.done for step in jobs.Job(one.folder).steps()] == [8]
    python_as_worker(f"touch {one.folder}/outcome.json; echo 'No space left on device'; exit 1")
    assert "No space left" in supervisor.run(one).message


def test_a_job_is_started_by_command(
    text_model: Path, tmp_path: Path, command: Command, python_as_worker: Stand
) -> None:
    python_as_worker("exit 0")
    asked = command("start", text_model, tmp_path / "out", "--jobs", tmp_path / "jobs", "--scheme", "FP8_DYNAMIC")
    told = subprocess.run(asked, cwd=environment.ROOT, capture_output=True, text=True, check=True).stdout
    until(lambda: Job(Path(json.loads(told)["job"])).state.status is Status.DONE)


def test_an_interpreter_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_QUANTIZE_PYTHON", str(tmp_path / "nothing"))
    state = supervisor.run(made(tmp_path))
    assert state.status is Status.FAILED
    assert "OMNI_QUANTIZE_PYTHON has no interpreter at" in state.message


def test_an_empty_variable_names_no_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_QUANTIZE_PYTHON", "")
    monkeypatch.setenv("OMNI_QUANTIZE_VENV", str(tmp_path / "not-built"))
    assert not environment.ready()


def test_progress_tells_the_time_left(tmp_path: Path) -> None:
    now = iter([100.0, 110.0])
    tell = Reporter(tmp_path / "progress.jsonl", lambda: next(now))
    tell("quantize", 0, 4, "a")
    tell("quantize", 1, 4, "b")
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert lines[0]["seconds_left"] is None
    assert lines[1]["seconds_left"] == 30.0
    assert lines[1]["layer"] == "b"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("verify", "{text}", "--measure"), "name it, with --original"),
        (("verify", "{text}", "--original", "{text}", "--sounds", "x"), "name it, with --original"),
        (("verify", "{text}"), "OMNI_QUANTIZE_PYTHON has no interpreter"),
        (("start", "them/model", "--task", "verify"), "hf download them/model"),
        (("start", "{text}", "out", "--task", "convert"), "not made by ModelOpt"),
        (("start", "{text}", "--task", "verify", "--original", "{text}/none"), "is not a model folder"),
        (("estimate", "{text}", "--recipe", "plan", "--samples", "-5"), "calibration samples cannot be"),
        (("run", "{text}", "out", "--jobs", "/dev/null"), "/dev/null/"),
        (("start", "{text}", "/"), "/ is no name for a new folder"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    text_model: Path, tmp_path: Path, command: Command, arguments: tuple[str, ...], words: str
) -> None:
    filled = [argument.format(text=text_model) for argument in arguments]
    env = {**os.environ, "OMNI_QUANTIZE_PYTHON": str(tmp_path / "nothing")}
    ended = subprocess.run(
        command(*filled), cwd=environment.ROOT, env=env, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert ended.returncode == 1
    assert words in json.loads(ended.stdout)["error"]
    assert ended.stderr.count("\n") == 1


def test_steps_of_the_environment_are_each_told_and_promise_no_time(tmp_path: Path) -> None:
    tell = Reporter(tmp_path / "progress.jsonl", lambda: 100.0)
    for done in range(3):
        tell("environment", done, 3, "")
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [(line["done"], line["seconds_left"]) for line in lines] == [(0, None), (1, None), (2, None)]


def test_command_line_refuses_in_one_sentence(tmp_path: Path, command: Command) -> None:
    ended = subprocess.run(
        command("run", tmp_path, tmp_path / "out", "--jobs", tmp_path / "jobs"),
        cwd=environment.ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.strip() == f"{tmp_path} is not a model folder: there is no config.json in it."
    assert not (tmp_path / "jobs").exists()
