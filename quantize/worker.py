"""What runs in the interpreter that has llm-compressor: the job from its request to the published folder."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType

from quantize import (
    calibration,
    card,
    checkpoint,
    convert,
    estimate,
    folder,
    gpus,
    hub,
    measure,
    plan,
    sequential,
    stream,
    verify,
)  # fmt: skip
from quantize.checkpoint import Checkpoint
from quantize.errors import BadRequest, QuantizeError
from quantize.job import Job, Request, Task
from quantize.lifetime import end_with_caller
from quantize.pipe import until_unread
from quantize.plan import Plan
from quantize.progress import Reporter, Tell
from quantize.schemes import Recipe
from quantize.verify import Report

_QUALITY_WINDOWS = 4


def main() -> int:
    """Exit status 0: done; 1: failed, outcome.json or the report says why."""
    parser = argparse.ArgumentParser(prog="quantize.worker")
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("job", type=Path)
    verifying = commands.add_parser("verify")
    verifying.add_argument("folder", type=Path)
    verifying.add_argument("--original", type=Path)
    verifying.add_argument("--measure", type=Path, help="also run both models; this folder gets the speech of both")
    found = parser.parse_args()
    gpus.take_emptiest()
    if found.command == "verify":
        return _verify(found.folder, found.original, found.measure)
    return _run(Job(found.job))


def _verify(result: Path, original: Path | None, wavs: Path | None) -> int:
    try:
        report = _verified(result, original, wavs, _print)
    except QuantizeError as error:
        print(json.dumps({"error": str(error)}))
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(report.as_dict()))
    print(report.table(), file=sys.stderr)
    return 0 if report.passed else 1


def _print(stage: str, done: int, total: int, layer: str = "") -> None:
    if stage == "measure" and layer:
        print(f"{layer} ...", file=sys.stderr)


def _verified(result: Path, original: Path | None, wavs: Path | None, tell: Tell) -> Report:
    """wavs: where both models' speech goes; None to run neither."""
    source = checkpoint.read_source(original) if original else None
    report = verify.verify(result, original, tell)
    if source is None or wavs is None:
        return report
    if not report.passed:
        return replace(report, not_measured=dict.fromkeys(("quality", "speech"), "a check failed"))
    wavs.mkdir(parents=True, exist_ok=True)
    return _measured(report, source, result, wavs, tell)


def _measured(report: Report, source: Checkpoint, result: Path, wavs: Path, tell: Tell) -> Report:
    """The report with what running both models told."""
    found = measure.measure(source, result, wavs, estimate.machine(result).ram, _QUALITY_WINDOWS, tell)
    return replace(report, quality=found.quality, speech=found.speech, not_measured=found.not_measured)


def _run(job: Job) -> int:
    out = Path(job.request.output)

    def leave(number: int, frame: FrameType | None) -> None:
        folder.discard(out)
        os._exit(128 + number)  # unwinding torch takes seconds, and nothing is left to unwind for

    signal.signal(signal.SIGTERM, leave)
    end_with_caller()  # the supervisor that would tidy up is gone then, so `leave` does
    try:
        with folder.room_told(out):
            _TASKS[job.request.task](job, Reporter(job.folder / "progress.jsonl"))
    except QuantizeError as error:
        return _failed(job, str(error))
    except MemoryError:
        return _failed(job, "Memory ran out; close other programs, or choose a scheme without calibration.")
    finally:
        folder.discard(out)
    return 0


def _failed(job: Job, error: str) -> int:
    (job.folder / "outcome.json").write_text(json.dumps({"error": error}))
    return 1


def quantize(job: Job, tell: Tell) -> None:
    """The whole job. Raises QuantizeError."""
    request = job.request
    source, out = _source(request, tell), Path(request.output)
    made = plan.make(checkpoint.read_source(source), _recipe(request))
    expected = estimate.estimate(made, estimate.machine(out))
    estimate.require(expected)
    given = card.data(made, request.calibration)  # while the set is there: the job may take hours
    growing = folder.begin(source, out)
    scheme = stream.scheme_for(made)
    where = _write(made, growing, job, tell)
    tell("finish", 0, 2, "config and tokenizer")
    folder.complete(made, growing, scheme, where)
    report = replace(verify.verify(growing, source, tell), folder=str(out))
    verify.write(report, job.folder)
    report.require()
    report = _measured(report, made.source, growing, job.folder, tell)
    verify.write(report, job.folder)
    told = replace(report, folder=out.name, source=made.source.name)  # whoever gets it: no paths of ours
    verify.write(told, growing)
    tell("finish", 1, 2, "model card")
    (growing / "README.md").write_text(card.render(made, expected, report, given))
    folder.publish(out)
    tell("finish", 2, 2, str(out))


def _recipe(request: Request) -> Recipe:
    if request.recipe is None:
        raise BadRequest("The job names no recipe; start a new one.")
    return request.recipe


def _convert(job: Job, tell: Tell) -> None:
    request = job.request
    print(convert.convert(Path(request.source), Path(request.output), tell, job.folder).sentence())


def _check(job: Job, tell: Tell) -> None:
    request = job.request
    report = _verified(Path(request.source), Path(request.original) if request.original else None, job.folder, tell)
    verify.write(report, job.folder)
    report.require()


_TASKS: Mapping[Task, Callable[[Job, Tell], None]] = {"quantize": quantize, "convert": _convert, "verify": _check}


def _source(request: Request, tell: Tell) -> Path:
    """The model's folder; one on a hub is fetched, once it is sure that the job fits here."""
    if not hub.is_id(request.source):
        return Path(request.source)
    found, out = hub.resolve(request.source, request.commit), Path(request.output)
    made = plan.make(found.checkpoint, _recipe(request))
    estimate.require(estimate.estimate(made, estimate.machine(out), found.download(out)))
    return hub.fetch(found, tell)


def _write(made: Plan, growing: Path, job: Job, tell: Tell) -> dict[str, str]:
    scheme = stream.scheme_for(made)
    if made.recipe.needs_model:
        return sequential.write(made, growing, scheme, job.request.calibration, tell)
    amax = None
    if made.recipe.needs_data:
        amax = calibration.amax(made, job.request.calibration, job.folder / "calibration", tell)
    return stream.write(made, growing, scheme, amax, tell)


if __name__ == "__main__":
    sys.exit(until_unread(main))
