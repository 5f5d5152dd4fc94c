"""The System page in a real browser: the machine, and a stand-in server that is planned, started and stopped."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from playwright.sync_api import Browser, Page, expect

from omni_app.runner import Runner
from omni_app.server import process
from omni_app.server.control import ServerControl
from omni_app.server.log import Stage
from omni_app.server.state import ServerFolder, ServerState
from omni_app.settings import Settings
from omni_app.ui.operators import Operators
from omni_app.ui.system import CHANGING_S, WORKING_S, SystemPage, server_html
from tests.scripted import ScriptedEngine
from tests.server import fake_vllm, model_folder
from tests.server.fake_vllm import Script

START_MS = 60_000
H100 = "0, GPU-1, NVIDIA H100 80GB HBM3, 81559, 81000, 9.0, 580.82"


def executable(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder.make(tmp_path_factory.mktemp("models") / "omni", "nvfp4")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    return on_paper(tmp_path, monkeypatch)


def on_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A machine with an H100 and an installed vLLM, both of paper."""
    executable(tmp_path / "bin/nvidia-smi", f'case "$1" in --query-gpu*) echo "{H100}";; esac')
    executable(tmp_path / "venv/bin/vllm", f'exec {sys.executable} {fake_vllm.__file__} "$@"')
    executable(tmp_path / "venv/bin/python", f'shift 3\nexec {sys.executable} {fake_vllm.__file__} "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return Settings(data_dir=tmp_path / "data", serve_venv=tmp_path / "venv", port=0, serve_port=port)


@contextmanager
def opened(browser: Browser, settings: Settings) -> Iterator[Page]:
    """A fresh app on these settings, and its System page; nothing may go wrong in the console."""
    from omni_app.ui.launch import serve

    problems: list[str] = []
    demo, url = serve(settings, Runner(ScriptedEngine(), "Chosen by the test.", 8))
    context = browser.new_context()
    try:
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.extend([line.text] if line.type == "error" else []))
        page.on("dialog", lambda dialog: dialog.accept())
        page.goto(url + "system")
        expect(page.locator("#server-state [role=status]")).to_be_visible(timeout=START_MS)
        yield page
    finally:
        context.close()
        demo.close()
    assert problems == []


def server(page: Page) -> Any:
    return page.locator("#server-state [role=status]")


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


@pytest.mark.browser
def test_a_server_is_planned_started_found_again_and_stopped(
    browser: Browser, settings: Settings, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ServerFolder(settings.data_dir)
    with opened(browser, settings) as page:
        expect(page.locator("#facts")).to_contain_text("NVIDIA H100", timeout=START_MS)
        expect(page.locator("#facts")).to_contain_text("disk")
        expect(page.locator("#facts")).not_to_contain_text("port of the app")  # it is its own
        page.get_by_label("Folder of the model").fill(str(model))
        press(page, "Show the plan")
        expect(page.locator("#answer")).to_contain_text("thinker", timeout=START_MS)
        expect(page.locator("#plan")).to_contain_text("stage_id")
        press(page, "Start")
        expect(server(page)).to_contain_text("thinker: ready (19.3 GiB of weights", timeout=START_MS)
        expect(server(page)).to_contain_text("ready: The start took", timeout=START_MS)
        expect(page.locator("#server-log textarea")).to_have_value(re.compile("EngineCore running"))
    state = folder.read()
    assert state.server is not None
    assert process.is_running(state.server)
    assert "stage_id" in folder.deploy.read_text()
    with opened(browser, settings) as page:
        expect(server(page)).to_contain_text("ready: The start took")
        expect(page.get_by_role("button", name="Start", exact=True)).to_be_disabled()
        page.evaluate("[window.confirm, window.asks] = [() => false, window.confirm]")
        press(page, "Stop")
        page.wait_for_timeout(500)
        expect(page.get_by_text("Error", exact=True)).to_be_hidden()  # a no is no failure
        page.evaluate("window.confirm = window.asks")
        press(page, "Stop")
        expect(server(page)).to_contain_text("stopped: The server was stopped.", timeout=START_MS)
        expect(page.get_by_role("button", name="Start", exact=True)).to_be_enabled()
    assert process.members(state.server) == []


@pytest.mark.browser
def test_what_cannot_work_is_said_in_a_sentence(
    browser: Browser, settings: Settings, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script("vllm030_bad_batched_tokens", exit_code=1)
    monkeypatch.setenv("FAKE_VLLM", json.dumps(asdict(script)))
    with opened(browser, settings) as page:
        press(page, "Start")
        expect(page.get_by_role("alert")).to_have_text("Name the folder of the model.")
        page.get_by_label("Folder of the model").fill(str(tmp_path / "nothing"))
        press(page, "Show the plan")
        expect(page.get_by_role("alert")).to_contain_text("nothing")
        page.get_by_label("Folder of the model").fill(str(model))
        press(page, "Start")
        expect(server(page)).to_contain_text("failed: The deploy configuration was refused", timeout=START_MS)


@pytest.mark.browser
def test_a_plan_is_shown_before_the_servers_environment_is_built(
    browser: Browser, settings: Settings, model: Path, tmp_path: Path
) -> None:
    with opened(browser, settings.model_copy(update={"serve_venv": tmp_path / "none"})) as page:
        page.get_by_label("Folder of the model").fill(str(model))
        press(page, "Show the plan")
        expect(page.locator("#answer")).to_contain_text(
            re.compile("thinker.*vLLM is not installed.* with make serve.", re.DOTALL), timeout=START_MS
        )
        press(page, "Start")
        expect(page.get_by_role("alert")).to_contain_text("Build that environment with make serve")


@pytest.mark.browser
def test_the_operators_password_is_asked_for(browser: Browser, settings: Settings, model: Path) -> None:
    with opened(browser, settings.model_copy(update={"operator": gr_secret("sesame")})) as page:
        page.get_by_label("Folder of the model").fill(str(model))
        press(page, "Show the plan")
        expect(page.get_by_role("alert")).to_contain_text("not the operator's password")
        expect(page.locator("#facts table")).to_have_count(0)
        password = page.get_by_label("Operator's password")
        password.fill("sesame")
        password.press("Enter")
        expect(page.locator("#facts")).to_contain_text("NVIDIA H100", timeout=START_MS)
        press(page, "Show the plan")
        expect(page.locator("#answer")).to_contain_text("thinker", timeout=START_MS)


def gr_secret(value: str) -> Any:
    return Settings(operator=value).operator


@pytest.mark.parametrize(("options", "closed"), [({}, False), ({"host": "0.0.0.0"}, True)])
def test_a_page_open_to_others_says_why_it_has_no_form(
    options: dict[str, Any], closed: bool, settings: Settings
) -> None:
    settings = settings.model_copy(update=options)
    page = SystemPage(Runner(ScriptedEngine(), "", 8), settings, ServerControl(settings), Operators(settings))
    with gr.Blocks() as demo:
        pass
    page.mount(demo)
    blocks = list(demo.blocks.values())
    [note] = [block for block in blocks if isinstance(block, gr.HTML) and "OMNI_OPERATOR" in str(block.value)]
    [form] = [block for block in blocks if isinstance(block, gr.Accordion)]
    assert (note.visible, form.visible) == (closed, not closed)


def test_the_state_is_shown_as_text_with_memory_by_stage() -> None:
    stage = Stage(number=0, phase="ready", weights_gib=19.28)
    state = ServerState(status="ready", model="<b>", message="It was <ready>.", stages=(stage,), endpoint="http://x")
    shown = server_html(state, 0.0, {"thinker": 33.8})
    assert "<b>" not in shown
    assert "&lt;ready&gt;" in shown
    assert '<li class="ready">thinker: ready (19.3 GiB of weights) · 33.8 GiB of GPU memory</li>' in shown


@pytest.mark.parametrize(
    ("options", "says", "seconds"),
    [
        ({}, "The app moves to the server below now", CHANGING_S),
        ({"engine": "builtin"}, "OMNI_ENGINE or OMNI_ENDPOINT keeps the app from it", WORKING_S),
        ({"endpoint": "http://elsewhere:8091"}, "OMNI_ENGINE or OMNI_ENDPOINT keeps the app from it", WORKING_S),
    ],
)
def test_what_a_ready_server_means_for_the_app(
    options: dict[str, Any], says: str, seconds: float, settings: Settings
) -> None:
    control = ServerControl(settings)
    here = process.identify(os.getpid())
    control.folder.write(ServerState(status="ready", endpoint="http://127.0.0.1:1", supervisor=here, server=here))
    settings = settings.model_copy(update=options)
    page = SystemPage(Runner(ScriptedEngine(), "Chosen by the test.", 8), settings, control, Operators(settings))
    engine, _, _, timer, *_ = page._shown(operator=False)
    assert says in engine
    assert timer.value == seconds
