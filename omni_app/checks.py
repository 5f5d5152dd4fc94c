"""The doctor's checks: each looks at one thing and says what it is, why, and what to do about it."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omni_app import engines, pins
from omni_app.engines.builtin import assets
from omni_app.errors import AssetUnavailable, BadRequest, OmniError
from omni_app.hardware import GIB, Gpu, Machine
from omni_app.server import checkpoint, kernels, prepare, profile
from omni_app.server.profile import Wishes
from omni_app.server.state import ServerState
from omni_app.settings import LOOPBACK, Settings

Level = Literal["ok", "warn", "fail"]
DRIVER_FOR_CUDA_13 = 580
"""PyTorch 2.13, which vLLM 0.30 comes with, is built for CUDA 13.0."""
_PROJECT = Path(__file__).parent.parent
_APP_DISK, _APP_MEMORY = GIB, GIB
_HEALTH_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    value: str
    reason: str
    level: Level = "ok"
    """`warn` limits what can be done; `fail` must be put right before it works."""


@dataclass(frozen=True, slots=True)
class Patient:
    settings: Settings
    machine: Machine
    state: ServerState
    """Of the model's server of this data folder."""

    @property
    def grave(self) -> Level:
        """How bad a fault of the server's side is: only a warning where nobody has set the server up."""
        return "fail" if pins.site_packages(self.settings.serve_venv.expanduser()) else "warn"


def folders(settings: Settings) -> tuple[Path, ...]:
    """The folders whose disks matter."""
    return settings.data_dir.expanduser(), settings.cache_dir.expanduser()


# --- GPU


def gpu(patient: Patient) -> Iterator[Finding]:
    machine = patient.machine
    if not machine.gpus:
        yield Finding(
            "GPU", "none", f"{machine.gpus_reason}; Qwen3-Omni itself needs one, the builtin engine none", "warn"
        )
    for index, gpu in enumerate(machine.gpus):
        free, total = gpu.memory_free, gpu.memory_total
        value = f"{gpu.name}, {free.value / GIB:.1f} of {total.value / GIB:.1f} GiB free"
        yield Finding(f"GPU {index}", value, free.reason)
        yield from _capability(patient, gpu)


def _capability(patient: Patient, gpu: Gpu) -> Iterator[Finding]:
    found = gpu.compute_capability
    if found.value is None:
        yield Finding("compute capability", "unknown", found.reason, "warn")
        return
    level: Level = "ok" if found.value >= kernels.OLDEST else patient.grave
    yield Finding(
        "compute capability", ".".join(map(str, found.value)), f"{found.reason}; 8.0 or newer is needed", level
    )
    kernel = kernels.expected("nvfp4", found.value)
    seen = f"; the last start used {', '.join(patient.state.kernels)}" if patient.state.kernels else ""
    yield Finding("NVFP4 kernel", kernel.value, kernel.reason + seen)


def driver(patient: Patient) -> Iterator[Finding]:
    driver = patient.machine.driver
    if not patient.machine.gpus:
        return
    major = driver.value.partition(".")[0]
    if not major.isdigit():
        yield Finding("driver", "unknown", driver.reason, "warn")
    elif int(major) < DRIVER_FOR_CUDA_13:
        yield Finding("driver", driver.value, "CUDA 13 needs 580 or newer; update the NVIDIA driver", patient.grave)
    else:
        yield Finding("driver", driver.value, "580 or newer, as CUDA 13 needs")


# --- machine


def machine(patient: Patient) -> Iterator[Finding]:
    machine = patient.machine
    yield Finding("machine", machine.board.value or machine.arch.value, machine.board.reason)
    yield Finding("processor", f"{machine.cores.value} cores, {machine.arch.value}", machine.cores.reason)
    free, total = machine.ram_available, machine.ram_total
    level: Level = "ok" if free.value >= _APP_MEMORY else "warn"
    yield Finding("memory", f"{free.value / GIB:.1f} of {total.value / GIB:.1f} GiB free", free.reason, level)


def disk(patient: Patient) -> Iterator[Finding]:
    names = ("disk for conversations", "disk for model files")
    for name, folder in zip(names, folders(patient.settings), strict=True):
        if free := patient.machine.disk_free.get(folder):
            level: Level = "ok" if free.value >= _APP_DISK else "warn"
            yield Finding(name, f"{free.value / GIB:.1f} GiB free", free.reason, level)


# --- software


def app_packages(_: Patient) -> Iterator[Finding]:
    yield _packages("packages of the app", _PROJECT / "requirements.txt", None, "run `make run`, which installs them")


def serve_packages(patient: Patient) -> Iterator[Finding]:
    venv = patient.settings.serve_venv.expanduser()
    if site := pins.site_packages(venv):
        file = _PROJECT / "requirements-serve.txt"
        yield _packages("packages of the server", file, site, "run `make serve`, which installs them")
    else:
        yield Finding("packages of the server", "not installed", f"no environment in {venv}; `make serve` builds it")


def _packages(name: str, file: Path, site: list[str] | None, repair: str) -> Finding:
    try:
        wanted = file.read_text().splitlines()
    except OSError:
        return Finding(name, "not checked", f"there is no {file.name} beside the app", "warn")
    if not (told := pins.differences(wanted, site)):
        return Finding(name, "as pinned", file.name)
    more = f" and {len(told) - 3} more" if len(told) > 3 else ""
    level: Level = "fail" if any(phrase.endswith("missing") for phrase in told) else "warn"
    return Finding(name, ", ".join(told[:3]) + more, f"{file.name} says otherwise; {repair}", level)


def programs(_: Patient) -> Iterator[Finding]:
    for program, unneeded in (
        ("ffmpeg", "not needed: the app decodes media with PyAV"),
        ("espeak-ng", "not needed: the app brings its own library"),
    ):
        yield Finding(program, shutil.which(program) or "not installed", unneeded)


def builtin_models(patient: Patient) -> Iterator[Finding]:
    folder = assets.models_dir(patient.settings.cache_dir.expanduser())
    absent = [one for one in assets.ASSETS if not _has_size(folder / one.name, one.size)]
    try:
        for models in (assets.MOONSHINE, assets.RAPIDOCR):
            assets.packaged(models)
    except AssetUnavailable as error:
        yield Finding("models of the builtin engine", "damaged", str(error), "fail")
        return
    if absent:
        size = sum(one.size for one in absent) / 1e6
        value = f"{len(absent)} of {len(assets.ASSETS)} files missing"
        reason = f"the first start fetches {size:.0f} MB to {folder}, or do it now: `python -m omni_app fetch`"
        yield Finding("models of the builtin engine", value, reason, "warn")
    else:
        yield Finding("models of the builtin engine", "present", str(folder))


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


# --- engine, server, network


def engine(patient: Patient) -> Iterator[Finding]:
    try:
        spec, why = engines.choose(patient.settings)
    except BadRequest as error:
        yield Finding("engine", patient.settings.engine, str(error), "fail")
        return
    yield Finding("engine", spec.name, why)
    if endpoint := patient.settings.endpoint.rstrip("/"):
        yield _reached(endpoint, patient.settings.api_key.get_secret_value())


def _reached(endpoint: str, key: str) -> Finding:
    import httpx

    base, headers = endpoint.removesuffix("/v1"), {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(f"{base}/health", headers=headers, timeout=_HEALTH_SECONDS)
        if answer.status_code == 404:  # not every OpenAI-style server has that page
            answer = httpx.get(f"{base}/v1/models", headers=headers, timeout=_HEALTH_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Finding("endpoint", endpoint, f"cannot be reached ({error}); start the server or correct it", "fail")
    if answer.is_success:
        return Finding("endpoint", endpoint, "healthy")
    if answer.status_code in (401, 403):
        return Finding("endpoint", endpoint, "refuses our key; set OMNI_API_KEY to the right one", "fail")
    return Finding("endpoint", endpoint, f"answers with HTTP {answer.status_code}; it may still be loading", "warn")


def model(patient: Patient) -> Iterator[Finding]:
    """Of the model that shall be served from the start, else of the one that was served last."""
    state, named = patient.state, patient.settings.serve_model or patient.state.model
    if not named:
        yield Finding("model folder", "none yet", "no model was served from here; `python -m omni_app serve FOLDER`")
        return
    folder = Path(named)
    try:
        folder = prepare.absolute(folder)
        found = checkpoint.read(folder)
        size = sum(part.size for part in found.parts.values()) / GIB
        yield Finding("model folder", str(folder), f"whole: {size:.1f} GiB, {found.thinker_format.upper()} thinker")
        if state.works and state.model == str(folder):
            yield Finding("model in memory", state.status, state.message or "its server runs")
        elif state.works:
            yield Finding("model in memory", "another one", f"{state.model} is {state.status}; stop it first", "warn")
        else:
            plan = profile.plan(patient.machine, found, Wishes(speech=found.speaks))
            yield Finding("model in memory", f"fits {plan.contexts} full conversations", plan.memory)
    except OmniError as error:
        yield Finding("model folder", str(folder), " ".join(str(error).splitlines()), patient.grave)


def app_port(patient: Patient) -> Iterator[Finding]:
    yield _port("port of the app", patient.settings.host, patient.settings.port, "--port")


def serve_port(patient: Patient) -> Iterator[Finding]:
    settings, state = patient.settings, patient.state
    if state.works and state.endpoint.endswith(f":{settings.serve_port}"):
        yield Finding(
            "port of the server", str(settings.serve_port), f"taken by our own server, which is {state.status}"
        )
    else:
        yield _port("port of the server", settings.serve_host, settings.serve_port, "--serve-port")


def _port(name: str, host: str, port: int, flag: str) -> Finding:
    if port == 0:
        return Finding(name, "any", "a free one is taken at the start")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server((host, port), family=family):
            return Finding(name, f"{host}:{port}", "free")
    except OSError as error:
        said = error.strerror or str(error)
        return Finding(
            name, f"{host}:{port}", f"{said}; another copy may be running, or choose another with {flag}", "warn"
        )


def microphone(patient: Patient) -> Iterator[Finding]:
    settings = patient.settings
    if settings.share:
        yield Finding("microphone", "works", "the share link is HTTPS")
    elif settings.https:
        yield Finding("microphone", "works", "the app serves HTTPS, with a certificate that it made itself")
    elif settings.host in LOOPBACK:
        yield Finding("microphone", "works on this machine", "browsers trust localhost without HTTPS")
    else:
        reason = "browsers give it to other machines only over HTTPS: start with --https"
        yield Finding("microphone", "works on this machine only", reason, "warn")
