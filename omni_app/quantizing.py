"""The quantizer as the app sees it: a program that answers in JSON, and one folder for each of its jobs.

`python -m quantize` runs in a process of its own and needs no torch; what it says is checked here.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

import omni_app
from omni_app.errors import BadRequest, OmniError
from omni_app.jobs import LIVE, Job, Recipe, Told
from omni_app.settings import Settings

ANSWER_SECONDS = 120
"""For one command; a name on a hub is looked up over the network."""
ROOT = Path(omni_app.__file__).parent.parent


class Scheme(Told):
    name: str
    label: str
    algorithms: tuple[str, ...]
    calibrated_activations: bool
    serving: str
    """What it runs on."""

    def needs_data(self, algorithm: str) -> bool:
        """Whether calibration samples are asked for."""
        return self.calibrated_activations or algorithm not in ("rtn", "mse")


class NamedRecipe(Recipe):
    name: str
    why: str


class Choices(Told):
    """Everything that can be chosen, and whether the worker's environment is built."""

    schemes: tuple[Scheme, ...]
    algorithms: dict[str, str]
    recipes: tuple[NamedRecipe, ...]
    ready: bool
    outdated: str
    """How it differs from the pinned requirements; empty where it does not, or is not built."""

    def scheme(self, name: str) -> Scheme:
        return next(scheme for scheme in self.schemes if scheme.name == name)


class Part(Told):
    name: str
    label: str
    parameters: int
    bytes_now: int
    bytes_after: int
    quantized: bool
    choosable: bool
    why: str


class Estimate(Told):
    """What a run would take and give. Bytes and seconds."""

    architecture: str
    scheme: str
    parameters: int
    bytes_now: int
    bytes_after: int
    disk_bytes: int
    ram_bytes: int
    gpu_bytes: int
    seconds: float
    parts: tuple[Part, ...]
    left: dict[str, str] = Field(default_factory=dict)
    """Layers of chosen parts that stay as they are, and why."""
    refusals: tuple[str, ...] = ()
    """Why it does not fit here; empty: it fits."""


class Coverage(Told):
    """Of one part: weights, scales left out."""

    label: str
    weights: int
    quantized: int
    kinds: tuple[str, ...]


class Declared(Told):
    producer: str


class Inspection(Told):
    """What a model folder holds; quantize/modelopt.py tells what each field means."""

    quantizer: str
    """Empty for a model that is not quantized."""
    weights: int
    covered: float
    parts: tuple[Coverage, ...]
    obstacles: tuple[str, ...]
    unconvertible: str
    declared: Declared | None = None

    @property
    def version(self) -> str:
        """Of the tool that quantized it, where the files say so."""
        return self.declared.producer.rpartition(" ")[2] if self.declared else ""


@dataclass(frozen=True, slots=True)
class Order:
    """What somebody asks of the quantizer."""

    source: str
    """A folder, or a name on a hub."""
    recipe: Recipe
    output: str = ""
    calibration: str = ""

    def arguments(self) -> list[str]:
        """Raises BadRequest for names that no program could be given."""
        asked = self.recipe
        options = {"scheme": asked.scheme, "algorithm": asked.algorithm, "parts": ",".join(asked.parts),
                   "samples": str(asked.samples), "group": str(asked.group), "mix": asked.mix}  # fmt: skip
        return [f"--{name}={value}" for name, value in options.items() if value]


class Quantizer:
    """The quantizer with the jobs of one data folder."""

    def __init__(self, settings: Settings) -> None:
        data = settings.data_dir.expanduser().absolute()
        self._jobs = data / "jobs"
        self.models = data / "models"
        """Where results are put unless another place is named."""
        self._choices: Choices | None = None

    def choices(self) -> Choices:
        """Asked anew as long as the worker's environment is not built."""
        if self._choices is None or not self._choices.ready:
            self._choices = Choices.model_validate(_ask("schemes"))
        return self._choices

    def estimate(self, order: Order) -> Estimate:
        """From the files' headers: about a second for 35 B parameters. Raises BadRequest for what cannot work."""
        output = _absolute(order.output.strip() or str(self.models), "")
        return Estimate.model_validate(_ask("estimate", *order.arguments(), "--", _source(order.source), output))

    def start(self, order: Order) -> Job:
        """Put a job in the queue. Raises BadRequest for what cannot work."""
        source, output = _source(order.source), _absolute(order.output, "Name the folder for the result.")
        given = order.calibration.strip()
        calibration = [f"--calibration={_absolute(given, '')}"] if given else []
        told = _ask("start", *order.arguments(), *calibration, f"--jobs={self._jobs}", "--", source, output)
        return Job(Path(told["job"]))

    def inspect(self, source: str) -> Inspection:
        """From the files' headers. Raises BadRequest for what is no model folder."""
        return Inspection.model_validate(_ask("inspect", "--", _source(source)))

    def convert(self, source: str, output: str) -> Job:
        """Put a conversion of ModelOpt's NVFP4 in the queue. Raises BadRequest for what cannot work."""
        return self._task("convert", "--", _source(source), _absolute(output, "Name the folder for the result."))

    def verify(self, source: str, original: str) -> Job:
        """Put the verification of a quantized model in the queue. Raises BadRequest for what cannot work.

        original: the model it was made from; empty: it is verified alone.
        """
        compared = [f"--original={_source(original)}"] if original.strip() else []
        return self._task("verify", *compared, "--", _source(source))

    def _task(self, name: str, *arguments: str) -> Job:
        return Job(Path(_ask("start", f"--task={name}", f"--jobs={self._jobs}", *arguments)["job"]))

    def again(self, job: Job) -> None:
        """Go on with a job that ended early. Raises BadRequest."""
        _ask("start", f"--job={job.folder}")

    def cancel(self, job: Job) -> None:
        """End a job within seconds, and what it has half written. Raises BadRequest."""
        _ask("cancel", "--", str(job.folder))

    def jobs(self) -> list[Job]:
        """All jobs whose files can be read, newest first."""
        made = [Job(path.parent) for path in self._jobs.glob("*/state.json")]
        known = [(job.created, job.id, job) for job in made if job.created is not None]
        return [job for *_, job in sorted(known, key=lambda found: found[:2], reverse=True)]

    def promised(self) -> set[str]:
        """Folders that living jobs will make."""
        return {job.request.output for job in self.jobs() if job.state.status in LIVE}

    def ahead(self, job: Job) -> int:
        """How many living jobs come before this one."""
        jobs = self.jobs()
        older = jobs[jobs.index(job) + 1 :] if job in jobs else []
        return sum(other.state.status in LIVE for other in older)


def _source(named: str) -> str:
    """A folder by its whole path; anything else as it stands, for it may be a name on a hub."""
    name = _clean(named, "Name the folder of the model, or the model on the hub.")
    path = _at_home(name)
    return str(path.absolute()) if path.exists() or name.startswith(("~", ".")) else name


def _absolute(named: str, missing: str) -> str:
    return str(_at_home(_clean(named, missing)).absolute())


def _at_home(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise BadRequest(f"{name} names the folder of a user who is not here; write it out.") from error


def _clean(named: str, missing: str) -> str:
    name = named.strip()
    if not name:
        raise BadRequest(missing)
    if "\0" in name or max(len(part.encode()) for part in name.split("/")) > 255:
        raise BadRequest(f"No file can have the name {name[:40]!r}…; shorten or mend it.")
    return name


def _ask(command: str, *arguments: str) -> Any:
    """The last line of what the quantizer answers. Raises BadRequest with its own words."""
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "quantize", command, *arguments], cwd=ROOT, env=environment(),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise OmniError(f"The quantizer has not answered within {ANSWER_SECONDS} s; try once more.") from error
    answer = _last_json(ended.stdout)
    if ended.returncode == 0 and answer is not None:
        return answer
    if answer and "error" in answer:
        raise BadRequest(str(answer["error"]))
    words = next((line for line in reversed(ended.stderr.splitlines()) if line.strip()), "it said nothing")
    raise OmniError(f"The quantizer broke off ({words.strip()[:300]}).")


def _last_json(text: str) -> Any:
    lines = text.splitlines()
    try:
        return json.loads(lines[-1]) if lines else None
    except ValueError:
        return None


def environment() -> dict[str, str]:
    """Ours without our own settings and login, which hold passwords; a job and its log outlive the app."""
    secret = ("OMNI_", "OAUTH_CLIENT_SECRET")
    own = {name for name in os.environ if name.startswith(secret) and not name.startswith("OMNI_QUANTIZE")}
    listener = shlex.join([sys.executable, "-m", "omni_app", "transcribe"])
    return {"QUANTIZE_ASR": listener} | {name: value for name, value in os.environ.items() if name not in own}
