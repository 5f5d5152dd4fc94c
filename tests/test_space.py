"""The folder of a Space, started as a Space starts it: alone, in an empty home, with only a Space's variables."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import httpx
import pytest
import yaml
from anyio import to_thread
from huggingface_hub import SpaceCardData
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import HTTPConnection

from omni_app import api, space
from omni_app.access import Guard
from omni_app.cli import main
from omni_app.errors import BadRequest, OmniError
from omni_app.media import Limits
from omni_app.runner import Runner
from omni_app.settings import Settings
from tests.conftest import Serve
from tests.scripted import ScriptedEngine

HOST = "ann-omni.hf.space"
BEHIND_THE_PROXY = {"host": HOST, "x-forwarded-proto": "https", "x-forwarded-for": "203.0.113.7"}
QUESTION = {"modalities": ["text"], "messages": [{"role": "user", "content": "What is the capital of France?"}]}
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
REQUIRED = {
    "title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "app_file", "python_version", "license", "models",
    "suggested_hardware", "short_description",
}  # fmt: skip
OPTIONAL = {
    "app_port", "base_path", "custom_headers", "datasets", "disable_embedding", "duplicated_from", "fullWidth",
    "header", "hf_oauth", "hf_oauth_expiration_minutes", "hf_oauth_scopes", "pinned", "preload_from_hub",
    "startup_duration_timeout", "tags", "thumbnail",
}  # fmt: skip
"""As the Hub's configuration reference of Spaces lists them."""
ELSEWHERE = {"torch", "transformers", "safetensors", "tokenizers", "bitsandbytes", "vllm", "vllm_omni", "jtop"}
"""Imported only in other environments, or where somebody has installed them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("spaces") / "omni"
    assert main(["space", str(made)]) == 0
    return made


class Started:
    """A Space that runs: its address, its home and all that it has printed."""

    def __init__(self, folder: Path, home: Path, **variables: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.home, self.url, self.output = home, f"http://127.0.0.1:{port}", ""
        self.process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder, env=_variables(home, port) | variables, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if line.startswith("Omni is at"):
                break
        else:
            raise AssertionError(self.output)
        self._draining = threading.Thread(target=self._drain, args=(self.process.stdout,))
        self._draining.start()

    def _drain(self, stdout: IO[str]) -> None:
        for line in stdout:
            self.output += line

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self._draining.join()

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(self.url + path, headers=BEHIND_THE_PROXY | headers, timeout=60)

    def ask(self, **headers: str) -> httpx.Response:
        address = f"{self.url}/v1/chat/completions"
        return httpx.post(address, json=QUESTION, headers=BEHIND_THE_PROXY | headers, timeout=120)


@pytest.fixture(scope="module")
def start(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Started]]:
    """Starts the folder as a Space with these variables and secrets."""
    with ExitStack() as stack:

        def started(**variables: str) -> Started:
            space = Started(folder, tmp_path_factory.mktemp("home"), **variables)
            stack.callback(space.stop)
            return space

        yield started


def _variables(home: Path, port: int) -> dict[str, str]:
    """What Spaces set, with a free port, and a temporary folder of this test's own."""
    return {
        "PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home), "LANG": "C.UTF-8",
        "SYSTEM": "spaces", "SPACE_ID": "ann/omni", "SPACE_HOST": HOST, "SPACE_AUTHOR_NAME": "ann",
        "SPACE_REPO_NAME": "omni", "SPACE_TITLE": "Omni", "CPU_CORES": "2", "MEMORY": "16Gi",
        "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": str(port), "GRADIO_ALLOW_FLAGGING": "never",
        "GRADIO_NUM_PORTS": "1", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip


# --- the folder


def test_the_folder_holds_what_runs_and_what_the_readme_links_to(folder: Path) -> None:
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"app.py", "README.md", "LICENSE", "requirements.txt", "omni_app/cli.py", "assets/sign.png"} <= files
    top = {file.partition("/")[0] for file in files}
    assert top.isdisjoint({"tests", "docker", "Makefile", "requirements-dev.txt", ".git", ".venv"})
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)\)", (folder / "README.md").read_text())
    assert [link for link in links if not (folder / link).exists()] == []
    assert not [file for file in files if "__pycache__" in file]


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(BadRequest, match="not an empty folder"):
        space.lay_out(tmp_path)
    with pytest.raises(BadRequest, match="not an empty folder"):
        space.lay_out(tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_front_matter_is_whole_and_the_hub_knows_all_of_it(folder: Path) -> None:
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    card: dict[str, Any] = yaml.safe_load(front)
    SpaceCardData(**card)
    assert set(card) >= REQUIRED
    assert set(card) <= REQUIRED | OPTIONAL
    assert {card["colorFrom"], card["colorTo"]} <= COLOURS
    assert len(card["short_description"]) <= 60
    assert (card["sdk"], card["app_file"], card["license"]) == ("gradio", "app.py", "apache-2.0")
    assert f"gradio=={card['sdk_version']}" in (folder / "requirements.txt").read_text().splitlines()
    assert text.strip().startswith("# ")


def test_requirements_txt_alone_is_enough(folder: Path) -> None:
    """Every package that the code imports is pinned there, whatever else this machine has."""
    pinned = {re.split(r"[=; ]", line)[0] for line in (folder / "requirements.txt").read_text().splitlines()}
    providers = importlib.metadata.packages_distributions()
    code = [folder / "app.py", *(folder / "omni_app").rglob("*.py")]
    imported = {name for file in code for name in _imports(file)} - sys.stdlib_module_names - {"omni_app"} - ELSEWHERE
    missing = {name for name in imported if not {_normal(one) for one in providers.get(name, ())} & pinned}
    assert imported >= {"gradio", "httpx", "numpy"}
    assert missing == set()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


# --- what a Space changes


def test_a_space_has_its_address_folders_and_limits_and_its_owner_the_last_word(tmp_path: Path) -> None:
    environ = _variables(tmp_path, 7860)
    found = space.adapted(Settings(), environ, persistent=tmp_path)
    assert (found.host, found.port, found.data_dir) == ("0.0.0.0", 7860, tmp_path / "omni-app")
    assert (found.visitor_replies, found.visitor_per_minute, found.proxies) == (2, 20, 1)
    asked = space.adapted(Settings(visitor_per_minute=0, data_dir=Path("mine")), environ, persistent=tmp_path)
    assert (asked.visitor_per_minute, asked.data_dir) == (0, Path("mine"))
    temporary = space.adapted(Settings(), environ, persistent=tmp_path / "absent")
    assert temporary.data_dir.parent == Path(tempfile.gettempdir())
    assert space.adapted(Settings(), {}) == Settings()


@pytest.mark.parametrize(
    ("environ", "refused"), [({"SPACE_ID": "ann/omni", "SPACE_HOST": f"{HOST},omni.example"}, False), ({}, True)]
)
def test_only_a_spaces_own_names_pass_as_its_origin(
    environ: Mapping[str, str], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SPACE_ID", "SPACE_HOST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    guard = Guard(Settings(host="0.0.0.0"))

    def is_refused(origin: str) -> bool:
        headers = [(b"host", b"10.0.0.3:7860"), (b"origin", origin.encode()), (b"x-forwarded-host", b"evil.example")]
        try:
            guard.check(HTTPConnection({"type": "http", "headers": headers}))
        except OmniError:
            return True
        return False

    assert is_refused(f"https://{HOST}") == is_refused("https://omni.example") == refused
    assert is_refused("https://evil.example")
    assert not is_refused("http://10.0.0.3:7860")


# --- the folder, started


@pytest.mark.models
def test_on_a_processor_the_builtin_engine_answers_behind_the_proxy(start: Callable[..., Started]) -> None:
    running = start(OMNI_CACHE_DIR=str(Settings().cache_dir))
    page = running.get("/", accept="text/html")
    assert page.status_code == 200
    assert "Partitioned" in page.headers["set-cookie"]
    assert f"https://{HOST}" in page.text
    answer = running.ask(origin=f"https://{HOST}")
    assert answer.status_code == 200, answer.text
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]
    assert running.ask(origin="https://evil.example").status_code == 403
    assert running.get("/v1/models").json()["data"][0]["owned_by"] == "builtin"
    assert "(engine builtin: Qwen3-Omni itself needs a GPU" in running.output


@pytest.mark.anyio
async def test_secrets_lead_to_a_server_and_are_written_nowhere(
    serve: Serve, start: Callable[..., Started], tmp_path: Path
) -> None:
    key, password, own, application = "k3y-of-the-server", "passw0rd-of-ann", "op3rators-word", "0auth-secret"
    settings = Settings(data_dir=tmp_path, serve_key=SecretStr(key))
    runner = Runner(ScriptedEngine(0.0), "", 4)
    runner.start()
    url = await serve(Starlette(routes=api.routes(runner, settings, Limits.of(settings))))
    secrets = {"OMNI_API_KEY": key, "OMNI_AUTH": f"ann:{password}", "OMNI_OPERATOR": own, "OMNI_SERVE_KEY": key[::-1]}
    oauth = {"OAUTH_CLIENT_ID": "client", "OAUTH_CLIENT_SECRET": application, "OAUTH_SCOPES": "openid profile",
             "OPENID_PROVIDER_URL": "https://hub.example"}  # fmt: skip
    running = await to_thread.run_sync(lambda: start(OMNI_ENDPOINT=url, **secrets, **oauth))
    assert (await to_thread.run_sync(running.ask)).status_code == 401
    answer = await to_thread.run_sync(lambda: running.ask(authorization=f"Bearer {key[::-1]}"))
    assert answer.json()["choices"][0]["message"]["content"].startswith("echo: What is the capital")
    login = {"username": "ann", "password": password}
    entered = await to_thread.run_sync(lambda: httpx.post(f"{running.url}/login", data=login))
    assert entered.status_code == 200
    config = await to_thread.run_sync(lambda: httpx.get(f"{running.url}/config", cookies=entered.cookies))
    await to_thread.run_sync(running.stop)
    await runner.close()
    written = [file.read_bytes() for file in running.home.rglob("*") if file.is_file()]
    told = [running.output.encode(), config.content, answer.content, " ".join(running.process.args).encode()]
    every = (key, password, own, key[::-1], application)
    found = [secret for secret in every for text in written + told if secret.encode() in text]
    assert config.status_code == 200
    assert "Sign in with Hugging Face" in config.text
    assert "OMNI_ENDPOINT names a server" in running.output
    assert found == []
