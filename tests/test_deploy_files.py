"""What can be proven of containers, units and scripts without running them: that they name what is there.

Neither a container daemon nor a Jetson is needed; where systemd or a shell linter is installed, they have their say.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from omni_app.settings import Settings

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
UNITS = sorted((DOCKER / "systemd").glob("*.service"))


class Compose(yaml.SafeLoader):
    """YAML with the tags of compose, such as !reset."""


Compose.add_constructor("!reset", lambda loader, node: None)


def compose(name: str) -> dict[str, Any]:
    read: dict[str, Any] = yaml.load((DOCKER / name).read_text(), Loader=Compose)
    return read


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_are_pinned_run_by_nobody_special_and_tell_their_health(file: Path) -> None:
    text = file.read_text()
    bases = re.findall(r"^ARG BASE=(\S+)", text, re.MULTILINE)
    assert [bool(re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", base)) for base in bases] == [True]
    assert re.findall(r"^USER (.*)", text, re.MULTILINE)[-1] == "1000:1000"
    assert "HEALTHCHECK" in text
    assert "/health" in text


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_what_is_copied_exists_and_reaches_the_builder(file: Path) -> None:
    sent = {line[1:] for line in Path(f"{file}.dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.*)", file.read_text(), re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied == sent
    assert [name for name in sorted(copied) if not (ROOT / name).exists()] == []


def test_the_services_are_wired_and_hardened() -> None:
    services = compose("compose.yaml")["services"]
    app, server = services["app"], services["server"]
    assert app["environment"]["OMNI_ENDPOINT"] == "${OMNI_ENDPOINT-http://server:8091}"
    assert app["depends_on"]["server"]["condition"] == "service_healthy"
    assert app["environment"]["OMNI_API_KEY"] == server["environment"]["OMNI_API_KEY"]
    assert "ports" not in server
    assert app["ports"] == ["${BIND:-127.0.0.1}:7860:7860"]
    assert server["ipc"] == "host"
    for service in (app, server):
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        volumes = {volume.split(":")[1] for volume in service["volumes"]}
        assert {"/data", "/cache"} <= volumes
        assert (ROOT / service["build"]["dockerfile"]).is_file()


def test_what_the_page_names_reaches_the_containers() -> None:
    """Compose reads `.env` for its own file alone: a variable that no service names stays outside."""
    named = set(re.findall(r"\bOMNI_[A-Z_]+[A-Z]\b", (ROOT / "docs/containers.md").read_text()))
    services = [*compose("compose.yaml")["services"].values(), *compose("compose.thor.yaml")["services"].values()]
    assert named - {name for service in services for name in service["environment"]} == set()


def test_thor_has_its_own_base_and_changes_only_known_services() -> None:
    over, base = compose("compose.thor.yaml")["services"], compose("compose.yaml")["services"]
    assert set(over) <= set(base)
    image = over["server"]["build"]["args"]["BASE"]
    assert re.fullmatch(r"vllm/vllm-openai:v0\.30\.0-aarch64@sha256:[0-9a-f]{64}", image)
    assert "vllm==0.30.0" in (ROOT / "requirements-serve.txt").read_text().splitlines()


def test_every_variable_of_ours_is_a_setting() -> None:
    files = [*DOCKERFILES, *UNITS, *DOCKER.glob("*.yaml"), *(ROOT / "docs").glob("*.md")]
    settings = {f"OMNI_{name.upper()}" for name in Settings.model_fields} | {"OMNI_MODEL"}
    named = {(file.name, name) for file in files for name in re.findall(r"\bOMNI_[A-Z_]+[A-Z]\b", file.read_text())}
    deploying = {"space.md", "containers.md", "jetson-thor.md"}
    ours = {(file, name) for file, name in named if not file.endswith(".md") or file in deploying}
    assert {name for _, name in ours} - settings == set()


def test_the_servers_image_has_all_that_serve_imports() -> None:
    """`serve` is run with every package hidden but those that the Dockerfile installs and what they need."""
    line = re.search(r"requirements.txt \\\n\s+([\w -]+?) &&", (DOCKER / "server.Dockerfile").read_text())
    assert line is not None
    allowed = _closure(line[1].split())
    code = f"""
import sys, importlib.metadata
known = importlib.metadata.packages_distributions()
allowed = {sorted(allowed)!r}
class Hidden:
    def find_spec(self, name, path=None, target=None):
        owners = known.get(name.partition('.')[0])
        if owners and not any(owner.lower().replace('_', '-') in allowed for owner in owners):
            raise ModuleNotFoundError(f"{{name}} is not in the image")
sys.meta_path.insert(0, Hidden())
from omni_app.cli import main
from omni_app.server import foreground, prepare, warmup
raise SystemExit(main(["serve", "/nowhere", "--serve-venv", "/nowhere", "--only-plan"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "/nowhere is not a folder" in done.stderr, done.stderr
    assert done.returncode == 1


def _closure(names: list[str]) -> set[str]:
    """These packages and all that they require here, without extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name not in found:
            found.add(name)
            required = importlib.metadata.requires(name) or []
            waiting += [re.split(r"[^\w.-]", one)[0] for one in required if "extra ==" not in one]
            found &= {one for one in found if _installed(one)}
            waiting = [one for one in waiting if _installed(one)]
    return found


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd here")
    for unit in UNITS:
        here = unit.read_text().replace("/opt/omni/.venv/bin/python", sys.executable)
        (tmp_path / unit.name).write_text(here)
    command = ["systemd-analyze", "verify", *map(str, tmp_path.glob("*.service"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_start_a_command_of_ours_again_and_hold_no_secret(unit: Path) -> None:
    text = unit.read_text()
    start = re.search(r"^ExecStart=/opt/omni/.venv/bin/python -m omni_app (run|serve)\b", text, re.MULTILINE)
    assert start is not None
    assert re.search(r"^Restart=(always|on-failure)$", text, re.MULTILINE)
    assert "User=omni" in text
    assert "EnvironmentFile=/etc/omni/omni.env" in text
    assert not re.search(r"(KEY|AUTH|OPERATOR)=", text)


def test_the_offline_script_says_how_to_call_it() -> None:
    script = DOCKER / "offline.sh"
    assert subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0
    done = subprocess.run(["sh", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "install WHEELS" in done.stdout
