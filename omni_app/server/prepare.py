"""From settings and a model folder to a command line: all that happens before the server is started."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from omni_app import hardware
from omni_app.errors import BadRequest, EngineUnavailable
from omni_app.server import checkpoint, profile
from omni_app.server.profile import FLAGS, Plan, Wishes, environment
from omni_app.server.state import ServerFolder
from omni_app.server.supervisor import Launch
from omni_app.settings import LOOPBACK, Settings

MEDIA = "visitors"
"""The folder of the data in which visitors' media lie (`ui.store.VISITORS`)."""
_FAST_START = Path(__file__).with_name("fast_start.py")
_INSTEAD = {
    "--host": "say --serve-host instead",
    "--port": "say --serve-port instead",
    "--deploy-config": "say --deploy-config outside of it",
    "--allowed-local-media-path": "that folder follows from --data-dir",
    "--api-key": "set OMNI_API_KEY instead",
    "--uds": "the server must listen on --serve-host and --serve-port",
    "--ssl-keyfile": "the server is reached by HTTP; put a proxy with the certificate in front of it",
    "--ssl-certfile": "the server is reached by HTTP; put a proxy with the certificate in front of it",
}
"""Arguments of `vllm serve` that we give ourselves and rely on afterwards, and what to do about each."""
_NO_MULTICAST = {("NCCL_NVLS_ENABLE", "0"), ("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1"), ("NVSHMEM_DISABLE_NVLS", "1")}
"""Variables by which a host says that no program may use NVLink multicast."""


@dataclass(frozen=True, slots=True)
class Order:
    """What somebody wants to be served."""

    model: Path
    wishes: Wishes = field(default_factory=Wishes)
    deploy_config: Path | None = None
    """A deploy YAML of their own; then nothing is planned, and the wishes only say whether it speaks."""
    vllm_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A start that could begin now. `plan` is None for a deploy YAML of the user's own."""

    launch: Launch
    plan: Plan | None
    lacks: str = ""
    """What must be done before it can begin after all; empty for nothing."""

    def lines(self) -> list[str]:
        """The plan for people: memory, warnings, YAML, command."""
        plan = self.plan
        told = [*plan.table(), *(f"Mind: {warning}" for warning in plan.warnings), "", plan.text] if plan else []
        return [*told, shlex.join(self.launch.argv), *([f"Mind: {self.lacks}"] if self.lacks else [])]


def prepare(settings: Settings, order: Order, only_plan: bool = False) -> Prepared:
    """Raises BadRequest and EngineUnavailable for what would otherwise fail minutes later.

    For a plan alone the server's environment may be missing. It is asked for last, because it takes gigabytes and
    minutes, which a wrong folder or a GPU that is too small makes needless.
    """
    _check_arguments(order.vllm_args)
    vllm = settings.serve_venv.expanduser().absolute() / "bin" / "vllm"
    model = absolute(order.model)
    plan = None if order.deploy_config else _plan(model, order.wishes)
    lacks = "" if vllm.is_file() else _not_installed(vllm)
    if lacks and not only_plan:
        raise EngineUnavailable(lacks)
    deploy = _existing(order.deploy_config) if order.deploy_config else _deploy_file(settings)
    media = _media(settings)
    argv = (
        *_program(vllm, plan), "serve", str(model), "--deploy-config", str(deploy), *(plan.flags if plan else FLAGS),
        "--host", settings.serve_host, "--port", str(settings.serve_port),
        *(("--allowed-local-media-path", str(media)) if media else ()), *order.vllm_args,
    )  # fmt: skip
    key = settings.api_key.get_secret_value().strip()
    planned = environment(settings.cache_dir.expanduser().absolute(), settings.max_upload_mb) | _by_number(plan)
    launch = Launch(
        argv, _environment(vllm, planned, key), str(model), settings.serve_host, settings.serve_port, key,
        order.wishes.speech, order.wishes.users, plan.text if plan else "", plan.memory if plan else "",
        str(media or ""),
    )  # fmt: skip
    return Prepared(launch, plan, lacks)


def _check_arguments(given: tuple[str, ...]) -> None:
    """Raises BadRequest for what would make the server listen or ask elsewhere than we do."""
    for argument in given:
        name = argument.partition("=")[0].replace("_", "-")
        if instead := _INSTEAD.get(name):
            raise BadRequest(f"--vllm-args cannot hold {name}: {instead}.")


def _program(vllm: Path, plan: Plan | None) -> tuple[str, ...]:
    """What takes the arguments of `vllm`. A deploy file of the user's own may not be made for a quick start."""
    if plan is None or not plan.switches:
        return (str(vllm),)
    switches = ",".join(switch.value for switch in plan.switches)
    # -P, or else Python would look for its own `profile` among our modules.
    return (str(vllm.with_name("python")), "-P", str(_FAST_START), switches)


def _media(settings: Settings) -> Path | None:
    """The folder that the server may read media from by itself; None for a server that others can reach, who could
    ask it about the files."""
    if settings.serve_host not in LOOPBACK:
        return None
    folder = settings.data_dir.expanduser().absolute() / MEDIA
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EngineUnavailable(f"{folder} cannot be made. Choose another folder with --data-dir.") from error
    return folder


def _by_number(plan: Plan | None) -> dict[str, str]:
    """The GPUs that CUDA_VISIBLE_DEVICES names by UUID: vllm-omni starts stages together only on numbered ones
    (engine/stage_admission.py). With CUDA_DEVICE_ORDER as planned, CUDA counts as nvidia-smi does."""
    if plan is None or "GPU-" not in os.environ.get("CUDA_VISIBLE_DEVICES", ""):
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpu.index for gpu in plan.gpus)}


def _plan(model: Path, wishes: Wishes) -> Plan:
    return profile.plan(hardware.detect(), checkpoint.read(model), wishes)


def absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise BadRequest(f"There is no user whose folder {path} could be in. Write out the whole path.") from error


def _existing(file: Path) -> Path:
    path = absolute(file)
    if not path.is_file():
        raise BadRequest(f"The deploy file {path} does not exist. Check --deploy-config.")
    return path


def _deploy_file(settings: Settings) -> Path:
    return ServerFolder(settings.data_dir.expanduser().absolute()).deploy


def _not_installed(vllm: Path) -> str:
    return f"vLLM is not installed in {vllm.parent.parent}. Build that environment with `make serve`."


def _environment(vllm: Path, planned: Mapping[str, str], key: str) -> dict[str, str]:
    """Ours without our own settings and secrets; the key goes this way because everybody can read a command line."""
    kept_back = ("OMNI_", "OAUTH_", "VIRTUAL_ENV")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(kept_back)}
    # Kernels are compiled at run time with tools of that environment, such as ninja.
    path = f"{vllm.parent}{os.pathsep}{inherited.get('PATH', os.defpath)}"
    # A deploy file of the user's own may add up over GPUs with FlashInfer, which heeds none of those variables.
    unicast = {"VLLM_FLASHINFER_ALLREDUCE_BACKEND": "trtllm"} if _NO_MULTICAST & inherited.items() else {}
    return {**unicast, **inherited, **planned, "PATH": path, **({"VLLM_API_KEY": key} if key else {})}
