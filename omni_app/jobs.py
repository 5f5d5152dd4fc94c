"""Quantization jobs as their folders tell of them (layout: quantize/job.py), for a page that looks every second."""

from __future__ import annotations

import fcntl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

BEGIN_SECONDS = 30.0
"""A queued job that no process has taken up for so long has been forgotten."""
LOG_BYTES = 20_000

Status = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
Task = Literal["quantize", "convert", "verify"]
LIVE: tuple[Status, ...] = ("queued", "running")


class Told(BaseModel):
    """Something that the quantizer told; what it tells besides is left aside."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Recipe(Told):
    scheme: str
    algorithm: str
    parts: tuple[str, ...] = ()
    samples: int = 32
    group: int = 0
    """Group width of W4A16; 0: its own."""
    mix: str = ""
    """How many of the samples hold what, by name; empty: as they come."""


class Request(Told):
    source: str
    output: str
    """What can be served afterwards: the folder that is made, or the one that is verified."""
    recipe: Recipe | None
    calibration: str = ""
    task: Task = "quantize"
    original: str = ""


class State(Told):
    status: Status
    message: str = ""
    created: float = 0.0
    started: float = 0.0
    ended: float = 0.0


class Step(Told):
    """One line of a job's progress."""

    stage: str
    done: int
    total: int
    layer: str = ""
    seconds_left: float | None = None
    ram_bytes: int = 0
    time: float = 0.0


class Check(Told):
    name: str
    passed: bool
    detail: str


class LayerError(Told):
    layer: str
    kind: str
    relative: float | None


class DepthError(Told):
    """Relative weight errors of one part within one decoder layer."""

    part: str
    depth: int
    mean: float | None
    worst: float | None


class Speech(Told):
    """One sentence, said by the original and by the result; rates are None where nobody listened."""

    asked: str
    said_before: str = ""
    said_after: str = ""
    heard_before: str = ""
    heard_after: str = ""
    word_error_rate: float | None = None
    wav_before: str = "speech_before.wav"
    wav_after: str = "speech_after.wav"


class Report(Told):
    """verification.json; quantize/verify/report.py tells what each figure means."""

    passed: bool
    checks: tuple[Check, ...]
    worst: tuple[LayerError, ...] = ()
    mean_error: dict[str, float | None] = Field(default_factory=dict)
    depth_error: tuple[DepthError, ...] = ()
    quality: dict[str, float | None] = Field(default_factory=dict)
    speech: Speech | None = None
    not_measured: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def request(self) -> Request:
        return Request.model_validate_json((self.folder / "request.json").read_text())

    @property
    def created(self) -> float | None:
        """In seconds since the epoch; None where its files cannot be read, as after a power cut or a removal."""
        try:
            _, state = self.request, State.model_validate_json((self.folder / "state.json").read_text())
            return state.created
        except (OSError, ValueError):
            return None

    @property
    def state(self) -> State:
        """How the job really stands: one whose process died is interrupted, whatever its file says."""
        found = State.model_validate_json((self.folder / "state.json").read_text())
        if found.status not in LIVE or self._attended:
            return found
        if found.status == "queued" and time.time() - found.created < BEGIN_SECONDS:
            return found
        last = next(reversed(self.steps(found.created)), None)
        where = f" at {last.stage}, {last.done} of {last.total}" if last else ""
        message = f"The job stopped{where}: its process ended, or the machine did. Start it again to go on."
        return found.model_copy(update={"status": "interrupted", "message": message})

    @property
    def _attended(self) -> bool:
        """Whether a living process holds the job's lock."""
        with (self.folder / "lock").open("a+") as lock:  # NFS gives a shared lock to a reader alone
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def steps(self, since: float = 0.0) -> list[Step]:
        """Steps that were made after `since`, in seconds since the epoch; oldest first."""
        lines = _text(self.folder / "progress.jsonl").splitlines()
        return [step for step in map(_step, lines) if step and step.time >= since]

    def log(self) -> str:
        """The last lines."""
        path = self.folder / "log.txt"
        if not path.exists():
            return ""
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - LOG_BYTES, 0))
            tail = file.read().decode(errors="replace")
        return tail if len(tail) < LOG_BYTES else tail.partition("\n")[2]

    @property
    def report(self) -> Report | None:
        """The verification; None before it is written, and while it is."""
        try:
            return Report.model_validate_json((self.folder / "verification.json").read_text())
        except (FileNotFoundError, ValidationError):
            return None

    def file(self, name: str) -> Path | None:
        """A file of the job, where there is one."""
        path = self.folder / name
        return path if path.is_file() else None

    @property
    def card(self) -> str:
        """The model card of a finished result, in Markdown; empty where there is none, or somebody else's."""
        request = self.request
        text = "" if request.task == "verify" else _text(Path(request.output) / "README.md")
        return text.split("\n---\n", 1)[-1].strip() if text.startswith("---\n") else text


def _step(line: str) -> Step | None:
    """None for a line that a full disk or a kill has cut off; the next one may have been joined to it."""
    try:
        return Step.model_validate_json(line)
    except ValidationError:
        return None


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""
