"""`python -m quantize estimate | run | start | cancel | jobs | verify | card | push | inspect | convert | schemes`.

Machine-readable lines on stdout, words on stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from quantize import checkpoint, convert, environment, estimate, folder, hub, job, modelopt, plan, push, supervisor
from quantize.errors import BadRequest, CalibrationUnusable, QuantizeError
from quantize.job import LIVE, Job, Request, Status, Task
from quantize.lifetime import end_with_caller
from quantize.pipe import until_unread
from quantize.samples import require_set
from quantize.schemes import ALGORITHMS, MIXES, RECIPES, SCHEMES, Recipe

_FOLLOW_SECONDS = 0.25
_JOBS = Path("data/jobs")
_MOST_SAMPLES = 100_000


def main() -> int:
    """Exit status 0: done; 1: failed, with one sentence; 130: cancelled. Raises BrokenPipeError."""
    found = _arguments().parse_args()
    try:
        return int(_COMMANDS[found.command](found))
    except QuantizeError as error:
        why = str(error)
    except BrokenPipeError:
        raise
    except OSError as error:
        why = f"{error.filename or 'A file'} cannot be used: {error.strerror or error}."
    print(json.dumps({"error": why}))
    print(why, file=sys.stderr)
    return 1


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m quantize", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sizing = commands.add_parser("estimate", help="sizes, memory and time, from the files' headers")
    sizing.add_argument("source", help="a model folder, or a hub id (owner/name or owner/name@revision)")
    sizing.add_argument("output", nargs="?", type=Path, help="where the result would go; beside a folder otherwise")
    running = commands.add_parser("run", help="quantize, verify, publish")
    starting = commands.add_parser("start", help="the same in the background; prints the job")
    for command in (running, starting):
        command.add_argument("--task", choices=get_args(Task), default="quantize", help="what to do with SOURCE")
        command.add_argument("--original", help="with --task verify: the model it was made from")
        command.add_argument("source", nargs="?", help="a model folder, or a hub id")
        command.add_argument("output", nargs="?", type=Path)
        command.add_argument("--jobs", type=Path, default=_JOBS, help="where job folders are kept")
        command.add_argument("--job", type=Path, help="take up an existing job instead")
        command.add_argument("--calibration", default="", help="folder or JSONL of samples")
    for command in (sizing, running, starting):
        _recipe_arguments(command)
    running.add_argument("--queued", action="store_true", help="with --job: unless it has been cancelled meanwhile")
    cancelling = commands.add_parser("cancel", help="end a job, and what it has half written")
    cancelling.add_argument("job", type=Path)
    verifying = commands.add_parser("verify", help="check a quantized folder, anybody's")
    verifying.add_argument("folder", type=Path)
    verifying.add_argument("--original", "--source", type=Path, help="the model it was made from, to compare with")
    verifying.add_argument("--measure", action="store_true", help="also run both models: perplexity, agreement, speech")
    verifying.add_argument("--sounds", type=Path, help="with --measure: the folder that keeps what both models said")
    printing = commands.add_parser("card", help="print the model card of a finished job")
    printing.add_argument("folder", type=Path)
    pushing = commands.add_parser("push", help="upload a finished folder to a hub, with your own login")
    pushing.add_argument("folder", type=Path)
    pushing.add_argument("repo", help="owner/name")
    pushing.add_argument("--public", action="store_true", help="for everybody to see; private otherwise")
    pushing.add_argument("--dry-run", action="store_true", help="print exactly what would be uploaded; send nothing")
    pushing.add_argument(
        "--visitor",
        action="store_true",
        help=f"use the token in {push.VISITOR_TOKEN} and no other; end when standard input does",
    )
    looking = commands.add_parser("inspect", help="how much of each part is quantized, and whether it can be served")
    looking.add_argument("folder", type=Path)
    converting = commands.add_parser("convert", help="turn ModelOpt's NVFP4 into compressed-tensors, proven equal")
    converting.add_argument("folder", type=Path)
    converting.add_argument("output", type=Path)
    listing = commands.add_parser("jobs", help="list the jobs, newest first")
    listing.add_argument("--jobs", type=Path, default=_JOBS)
    commands.add_parser("schemes", help="what there is to choose from, and whether the worker's environment is built")
    return parser


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", choices=list(RECIPES), help="a recipe by name; the options below override it")
    parser.add_argument("--scheme", choices=list(SCHEMES))
    parser.add_argument("--algorithm", choices=list(ALGORITHMS))
    parser.add_argument("--parts", help="comma-separated; the thinker's language model unless said otherwise")
    parser.add_argument("--samples", type=int, help="calibration samples")
    parser.add_argument("--mix", choices=list(MIXES), help="how many of the samples hold sound, pictures and text")
    parser.add_argument("--group", type=int, help="group width of W4A16: 32, 64 or 128")


def _recipe(found: argparse.Namespace) -> Recipe:
    base = RECIPES[found.recipe or "weight-only"][0]
    parts = tuple(found.parts.split(",")) if found.parts else base.parts
    samples = base.samples if found.samples is None else found.samples
    scheme, algorithm = found.scheme or base.scheme, found.algorithm or base.algorithm
    made = Recipe(scheme, algorithm, parts, samples, found.group or 0, found.mix or base.mix)
    if made.needs_data and not 1 <= samples <= _MOST_SAMPLES:
        raise BadRequest(f"{samples} calibration samples cannot be; take 1 to {_MOST_SAMPLES}.")
    return made


def _estimate(found: argparse.Namespace) -> int:
    out = found.output or (Path.cwd() if hub.is_id(found.source) else Path(found.source))
    model = hub.resolve(found.source)
    made = plan.make(model.checkpoint, _recipe(found))
    print(json.dumps(estimate.estimate(made, estimate.machine(out), model.download(out)).as_dict()))
    return 0


def _run(found: argparse.Namespace) -> int:
    one = _asked(found)
    if found.job and not found.queued:
        job.queue(one)
    following = threading.Event()
    follower = threading.Thread(target=_follow, args=(one, following), daemon=True)
    follower.start()
    state = supervisor.run(one, found.queued)
    following.set()
    follower.join()
    print(json.dumps({"job": str(one.folder), **asdict(state)}), flush=True)
    print(state.message, file=sys.stderr)
    return {Status.DONE: 0, Status.CANCELLED: 130}.get(state.status, 1)


def _start(found: argparse.Namespace) -> int:
    one = _asked(found)
    job.start(one)
    return _tell(one)


def _cancel(found: argparse.Namespace) -> int:
    one = _existing(found.job)
    job.cancel(one)
    return _tell(one)


def _tell(one: Job) -> int:
    print(json.dumps({"job": str(one.folder), "ahead": len(job.ahead(one)), **asdict(one.state)}))
    return 0


def _asked(found: argparse.Namespace) -> Job:
    return _existing(found.job) if found.job else _create(found)


def _existing(path: Path) -> Job:
    if not (path / "state.json").is_file():
        raise BadRequest(f"There is no job at {path}; `python -m quantize jobs` lists them.")
    return Job(path.absolute())


def _create(found: argparse.Namespace) -> Job:
    """A job that could begin now. What cannot work is refused here rather than after a wait in the queue."""
    if not found.source or not (found.output or found.task == "verify"):
        raise BadRequest(f"Name the model folder and the output folder: python -m quantize {found.command} SOURCE OUT.")
    request = {"quantize": _quantization, "convert": _conversion, "verify": _verification}[found.task](found)
    job.require_alone(found.jobs, request)
    return job.create(found.jobs, request)


def _conversion(found: argparse.Namespace) -> Request:
    source, out = _local(found.source), found.output.absolute()
    convert.require(source, out)
    return Request(str(source), str(out), None, task="convert")


def _verification(found: argparse.Namespace) -> Request:
    source, original = _local(found.source), _local(found.original) if found.original else None
    checkpoint.read(source)
    if original:
        checkpoint.read_source(original)
    return Request(str(source), str(source), None, task="verify", original=str(original or ""))


def _local(named: str) -> Path:
    if hub.is_id(named):
        raise BadRequest(
            f"Only a folder on this machine can be checked; fetch it: hf download {named} --local-dir FOLDER."
        )
    return Path(named).absolute()


def _quantization(found: argparse.Namespace) -> Request:
    source = found.source if hub.is_id(found.source) else str(Path(found.source).absolute())
    out = found.output.absolute()
    model = hub.resolve(source)
    made = plan.make(model.checkpoint, _recipe(found))
    folder.require_free(Path(source), out)
    calibration = _calibration(found.calibration)
    if made.recipe.needs_data:
        require_set(calibration, made.recipe.samples, made.source.is_omni, made.recipe.mix)
    if not any(one.state.status in LIVE for one in job.find(found.jobs)):  # who is ahead holds memory that comes back
        estimate.require(estimate.estimate(made, estimate.machine(out), model.download(out)))
    return Request(source, str(out), made.recipe, calibration, commit=model.looked_at)


def _calibration(named: str) -> str:
    path = Path(named).absolute()
    if not path.exists():
        raise CalibrationUnusable(f"There is no calibration set at {path}; name a folder or a JSONL file.")
    return str(path) if named else ""


def _follow(one: Job, ended: threading.Event) -> None:
    """Print the job's steps as they come. The job goes on when nobody reads them any more."""
    with contextlib.suppress(BrokenPipeError):
        _print_steps(one, ended)


def _print_steps(one: Job, ended: threading.Event) -> None:
    seen = 0
    last = False
    while not last:
        last = ended.wait(_FOLLOW_SECONDS)
        steps = list(one.steps())
        for step in steps[seen:]:
            print(json.dumps(asdict(step)), flush=True)
        seen = len(steps)


def _verify(found: argparse.Namespace) -> int:
    if (found.measure or found.sounds) and not (found.original and found.measure):
        raise BadRequest("Measuring runs the original too: name it, with --original MODEL --measure.")
    original = ["--original", str(found.original.absolute())] if found.original else []
    with tempfile.TemporaryDirectory() as lost:
        measure = ["--measure", str((found.sounds or Path(lost)).absolute())] if found.measure else []
        return _in_environment("quantize.worker", "verify", str(found.folder.absolute()), *original, *measure)


def _convert(found: argparse.Namespace) -> int:
    return _in_environment("quantize.convert", str(found.folder.absolute()), str(found.output.absolute()))


def _in_environment(*arguments: str) -> int:
    """Run a module of ours in the worker's interpreter."""
    command = [str(environment.built()), "-m", *arguments]
    return subprocess.run(command, cwd=environment.ROOT, env=environment.variables(), check=False).returncode


def _inspect(found: argparse.Namespace) -> int:
    description = modelopt.describe(found.folder)
    print(json.dumps(description.as_dict()))
    print(description.table(), file=sys.stderr)
    return 0


def _card(found: argparse.Namespace) -> int:
    path = found.folder / "README.md"
    if not path.is_file():
        raise BadRequest(f"{found.folder} has no model card; only a result of `python -m quantize run` has one.")
    print(path.read_text())
    return 0


def _push(found: argparse.Namespace) -> int:
    if found.visitor:
        end_with_caller()
    if found.dry_run:
        upload = push.listing(found.folder, found.repo, not found.public, _say)
        print(json.dumps(upload.as_dict()))
        print(upload.table(), file=sys.stderr)
        return 0
    token = push.own_token(found.visitor)
    print(json.dumps({"url": push.push(found.folder, found.repo, token, not found.public, _say)}))
    return 0


def _say(stage: str, done: int, total: int, layer: str = "") -> None:
    print(json.dumps({"stage": stage, "done": done, "total": total, "layer": layer}), flush=True)


def _jobs(found: argparse.Namespace) -> int:
    for one in job.find(found.jobs):
        _tell(one)
    return 0


def _schemes(found: argparse.Namespace) -> int:
    recipes = [{"name": name, **asdict(recipe), "why": why} for name, (recipe, why) in RECIPES.items()]
    schemes = [asdict(scheme) for scheme in SCHEMES.values()]
    table = {"schemes": schemes, "algorithms": ALGORITHMS, "recipes": recipes}
    differs = environment.outdated()
    ready = environment.there() and not differs
    print(json.dumps({**table, "ready": ready, "outdated": environment.in_words(differs)}))
    return 0


_COMMANDS = {
    "estimate": _estimate, "run": _run, "start": _start, "cancel": _cancel, "jobs": _jobs, "verify": _verify,
    "card": _card, "push": _push, "inspect": _inspect, "convert": _convert, "schemes": _schemes,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(until_unread(main))
