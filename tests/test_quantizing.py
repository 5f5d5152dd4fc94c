"""The quantizer seen from the app: its commands and job folders, with a shell script in the place of the worker."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from omni_app.errors import BadRequest
from omni_app.jobs import Job, Recipe
from omni_app.quantizing import Order, Quantizer
from omni_app.server import checkpoint
from omni_app.server.control import ServerControl
from omni_app.server.fitting import Wishes
from omni_app.server.forecast import expected, forecast
from omni_app.settings import Settings
from omni_app.ui.operators import Operators
from omni_app.ui.quantize import QuantizePage
from quantize import job
from tests.server import model_folder
from tests.stand_in_worker import small_model, stand_in

DATA_FREE = Recipe(scheme="NVFP4A16", algorithm="rtn")


@pytest.fixture
def quantizer(tmp_path: Path) -> Quantizer:
    return Quantizer(Settings(data_dir=tmp_path / "data"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_model(tmp_path / "small")


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def test_there_are_schemes_and_recipes_to_choose_from(quantizer: Quantizer) -> None:
    found = quantizer.choices()
    assert found.scheme("NVFP4").needs_data("rtn")
    assert not found.scheme("NVFP4A16").needs_data("rtn")
    assert found.scheme("NVFP4A16").needs_data("gptq")
    assert {one.scheme for one in found.recipes} <= {one.name for one in found.schemes}
    assert {name for one in found.schemes for name in one.algorithms} == found.algorithms.keys()


def test_an_estimate_tells_each_part_and_why(quantizer: Quantizer, model: Path) -> None:
    found = quantizer.estimate(Order(str(model), DATA_FREE))
    assert found.bytes_after < found.bytes_now == sum(part.bytes_now for part in found.parts)
    assert {part.name for part in found.parts if part.quantized} == {"attention", "experts"}
    assert all(part.why for part in found.parts)


def test_an_estimate_asks_the_disk_that_gets_the_result(quantizer: Quantizer, model: Path) -> None:
    assert quantizer.estimate(Order(str(model), DATA_FREE)).refusals == ()
    (full,) = quantizer.estimate(Order(str(model), DATA_FREE, "/proc/out")).refusals
    assert "and 0.0 GB are free" in full


def test_a_named_recipe_keeps_its_mix_and_one_that_cannot_be_is_refused_at_once(
    quantizer: Quantizer, model: Path, tmp_path: Path
) -> None:
    (recipe,) = (one for one in quantizer.choices().recipes if one.mix)
    page = QuantizePage(Settings(data_dir=tmp_path / "data"), ServerControl(Settings()), Operators(Settings()))
    out = str(tmp_path / "out")
    order = page._order(str(model), recipe.name, recipe.scheme, recipe.algorithm, ["attention"], 4, 0, out)
    with pytest.raises(BadRequest, match="1 of sound, 1 of picture, 2 of text needs a model that takes pictures"):
        quantizer.start(order)
    assert quantizer.jobs() == []


def test_the_page_tells_of_an_environment_for_other_requirements(
    quantizer: Quantizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = quantizer.choices().model_copy(update={"ready": False, "outdated": "torch is 2.12.0, not 2.13.0"})
    monkeypatch.setattr(Quantizer, "choices", lambda self: old)
    page = QuantizePage(Settings(data_dir=tmp_path / "data"), ServerControl(Settings()), Operators(Settings()))
    note = asyncio.run(page._choices())[0].value
    assert "(torch is 2.12.0, not 2.13.0). The next job brings it up to date" in note
    assert "`make quantize-env`" in note


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (" ", "Name the folder of the model"),
        ("/nothing/here", "is not a model folder"),
        ("--help", "is not a model folder"),
        ("a\0b", "No file can have the name"),
        ("x" * 300, "No file can have the name"),
    ],
)
def test_what_is_no_model_is_said_in_a_sentence(quantizer: Quantizer, source: str, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        quantizer.estimate(Order(source, DATA_FREE))


def test_a_job_that_cannot_work_is_refused_before_it_is_made(quantizer: Quantizer, model: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    order = Order(str(model), DATA_FREE, str(tmp_path / "out"))
    for change, said in (
        ({"output": " "}, "Name the folder for the result"),
        ({"output": str(taken)}, "exists already"),
        ({"output": str(model / "inside")}, "never written to"),
        ({"calibration": str(tmp_path / "no.jsonl")}, "There is no calibration set"),
        ({"recipe": DATA_FREE.model_copy(update={"parts": ("embeddings",)})}, "stays BF16"),
        ({"source": str(taken)}, "no config.json"),
    ):
        with pytest.raises(BadRequest, match=said):
            quantizer.start(dataclasses.replace(order, **change))  # type: ignore[arg-type]
    assert quantizer.jobs() == []


def test_jobs_wait_for_each_other_give_way_and_are_cancelled(
    quantizer: Quantizer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = stand_in(tmp_path, monkeypatch)
    first = quantizer.start(Order(str(model), DATA_FREE, str(tmp_path / "one")))
    until(lambda: bool(first.steps()))
    second = quantizer.start(Order(str(model), DATA_FREE, str(tmp_path / "two")))
    until(lambda: (second.folder / "lock").exists())
    assert quantizer.jobs() == [second, first]
    assert (first.state.status, second.state.status, quantizer.ahead(second)) == ("running", "queued", 1)
    nice = min(os.getpriority(os.PRIO_PROCESS, 0) + 10, 19)
    assert os.getpriority(os.PRIO_PROCESS, worker.pid()) == nice
    quantizer.cancel(first)
    assert first.state.status == "cancelled"
    until(lambda: second.state.status == "running")
    worker.end(1, error="The disk ran full.")
    until(lambda: second.state.status == "failed")
    assert second.state.message == "The disk ran full."
    quantizer.again(second)
    until(lambda: second.state.status == "running")
    worker.end(0)
    until(lambda: second.state.status == "done")
    with pytest.raises(BadRequest, match="done"):
        quantizer.again(second)


def test_a_dead_job_is_interrupted_and_its_old_steps_are_told_apart(tmp_path: Path) -> None:
    job = Job(tmp_path)
    (tmp_path / "state.json").write_text(json.dumps({"status": "running", "created": 100.0}))
    step = {"stage": "capture", "done": 7, "total": 20, "time": 150.0}
    lines = [json.dumps({**step, "time": 50.0}), json.dumps(step), '{"stage": "cap']
    (tmp_path / "progress.jsonl").write_text("\n".join(lines))
    assert job.state.status == "interrupted"
    assert "capture, 7 of 20" in job.state.message
    assert [one.time for one in job.steps(100.0)] == [150.0]


def test_a_job_without_contents_hides_no_other(quantizer: Quantizer, tmp_path: Path) -> None:
    """As a power cut leaves a job that was just made."""
    asked = job.Request(str(tmp_path), str(tmp_path / "out"), recipe=None, task="convert")
    jobs = tmp_path / "data/jobs"
    lost, half, whole = (job.create(jobs, asked) for _ in range(3))
    (lost.folder / "state.json").write_text("")
    (half.folder / "request.json").write_text("")
    assert job.find(jobs) == [whole]
    assert job.ahead(whole) == []
    assert [one.folder for one in quantizer.jobs()] == [whole.folder]


def test_a_report_that_is_being_written_is_none(tmp_path: Path) -> None:
    assert Job(tmp_path).report is None
    (tmp_path / "verification.json").write_text('{"passed": tr')
    assert Job(tmp_path).report is None


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("".join(f"line {number}\n" for number in range(10_000)))
    lines = Job(tmp_path).log().splitlines()
    assert lines[-1] == "line 9999"
    assert 100 < len(lines) < 5000
    assert lines[0].startswith("line ")


def test_where_a_result_could_be_served_goes_by_its_expected_size(tmp_path: Path) -> None:
    now = checkpoint.read(model_folder.make(tmp_path / "bf16", "bf16"))
    true = checkpoint.read(model_folder.make(tmp_path / "nvfp4", "nvfp4"))
    after = {f"thinker_{name}": true.parts[name].size for name in ("attention", "experts")}
    then = expected(now, after, "nvfp4")
    assert then.thinker_format == true.thinker_format
    assert then.size(then.parts) == pytest.approx(true.size(true.parts), rel=1e-3)
    users = {one.gpu: one.users for one in forecast(now, after, "nvfp4", [], Wishes())}
    before = {one.gpu: one.users for one in forecast(now, {}, "bf16", [], Wishes())}
    assert users["48 GB (L40S)"] > 0 == before["48 GB (L40S)"]
