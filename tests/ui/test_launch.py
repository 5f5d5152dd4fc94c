"""The server as a whole, without a browser: login, headers, cookies, tools, and what a default start loads."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from gradio import http_server
from gradio_client import Client
from pydantic import SecretStr

from omni_app.engines.base import EngineStatus
from omni_app.runner import Runner
from omni_app.settings import Settings
from omni_app.ui import launch
from omni_app.ui.launch import _warn_of_exposure, serve
from omni_app.ui.live import Replies
from tests.scripted import ScriptedEngine
from tests.ui.conftest import App

ROOT = Path(__file__).parents[2]
HTML = {"accept": "text/html"}
JSON = {"content-type": "application/json"}
HALF = b'{"data": ["half \\ud83d", "", false, ""]}'  # an emoji cut in two


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("guarded"), port=0, auth=SecretStr("ann:secret"))
    demo, url = serve(settings, Runner(ScriptedEngine(), "Chosen by the test.", 4))
    yield url
    demo.close()


def test_a_free_port_is_asked_for_and_not_searched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where two apps search at once, one of them finds none within minutes."""
    monkeypatch.setattr(http_server, "TRY_NUM_PORTS", 0)
    demo, url = serve(Settings(data_dir=tmp_path, port=0), Runner(ScriptedEngine(), "Chosen by the test.", 4))
    assert httpx.get(url).status_code == 200
    demo.close()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "config"),
        ("GET", "gradio_api/info"),
        ("POST", "gradio_api/upload"),
        ("POST", "v1/chat/completions"),
        ("GET", "v1/models"),
        ("GET", "metrics"),
    ],
)
def test_login_guards_every_way_in(guarded: str, method: str, path: str) -> None:
    assert httpx.request(method, guarded + path).status_code == 401


def test_a_taken_port_is_told_in_one_sentence(app: App, tmp_path: Path) -> None:
    port = httpx.URL(app.url).port
    command = [sys.executable, "app.py", f"--port={port}", f"--data-dir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"cannot listen at 127.0.0.1, port {port}." in done.stderr.splitlines()[-1]
    assert "--port" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_login_guards_recordings_too(guarded: str) -> None:
    with httpx.Client(base_url=guarded) as client:
        client.get("/", headers=HTML)
        assert client.post("/gradio_api/utterance", content=b"RIFF").status_code == 403
        assert client.post("/login", data={"username": "ann", "password": "secret"}).status_code == 200
        answer = client.post("/gradio_api/utterance", content=b"RIFF")
        assert answer.status_code == 400
        assert "error" in answer.json()


def test_cookie_lasts_unreadable_for_scripts_and_fit_for_frames_over_https(app: App) -> None:
    with httpx.Client(base_url=app.url) as client:
        cookie = client.get("/", headers=HTML).headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
        assert "Max-Age=31536000" in cookie
        assert client.get("/", headers=HTML).headers["set-cookie"] == cookie
        assert "set-cookie" not in client.get("/health").headers
    secure = httpx.get(app.url, headers=HTML | {"x-forwarded-proto": "https"}).headers["set-cookie"]
    assert "SameSite=None; Secure; Partitioned" in secure


def test_cookies_of_other_programs_on_this_host_do_not_cost_the_visitor_theirs(app: App) -> None:
    token = "v" * 43
    for other in ('prefs={"a": 1}', "a b=c d", "x=[1,2]; y"):
        headers = HTML | {"cookie": f"{other}; omni_visitor={token}"}
        assert httpx.get(app.url, headers=headers).headers["set-cookie"].startswith(f"omni_visitor={token};")


@pytest.mark.parametrize("route", ["file=", "file/", "file=/", "file//"])
def test_kept_files_are_reached_by_no_route_of_gradio(app: App, route: str) -> None:
    kept = app.data / "visitors" / "someone" / "conversation.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text("private")
    answer = httpx.get(f"{app.url}gradio_api/{route}{kept}")
    assert answer.status_code == 404
    assert "private" not in answer.text


@pytest.mark.parametrize("auth", ["secret", "user:", ":password", ":"])
def test_half_a_login_is_refused_instead_of_opening_everything(auth: str) -> None:
    with pytest.raises(ValueError, match="user:password"):
        Settings(auth=SecretStr(auth))


def test_every_response_carries_the_security_headers(app: App) -> None:
    for path in ("", "health", "v1/models", "nowhere"):
        headers = httpx.get(app.url + path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "img-src 'self'" in headers["content-security-policy"]


def test_oversized_recording_is_refused_before_it_is_taken_in(app: App) -> None:
    with httpx.Client(base_url=app.url) as client:
        client.get("/", headers=HTML)
        answer = client.post("/gradio_api/utterance", content=(b"x" * 10**6 for _ in range(120)))
        assert answer.status_code == 413
        assert "100 MB" in answer.json()["error"]


def test_gradio_client_and_mcp_offer_the_one_tool(app: App) -> None:
    client = Client(app.url, verbose=False)
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/ask"]
    text, speech = client.predict("hello", "", True, "", api_name="/ask")
    assert text == "echo: hello "
    assert speech.startswith("data:audio/wav;base64,UklGR")
    half = httpx.post(app.url + "gradio_api/run/ask", content=HALF, headers=JSON)
    assert half.json()["data"][0] == "echo: half ? "
    schema = httpx.get(app.url + "gradio_api/mcp/schema").json()
    assert [tool["name"] for tool in schema] == ["ask"]


def test_tool_says_what_is_wrong(app: App) -> None:
    client = Client(app.url, verbose=False)
    with pytest.raises(Exception, match="never fetch"):
        client.predict("hello", "https://example.com/cat.png", False, "", api_name="/ask")
    with pytest.raises(Exception, match="no voice"):
        client.predict("hello", "", False, "soprano", api_name="/ask")


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        (Settings(), False),
        (Settings(host="0.0.0.0"), True),
        (Settings(share=True), True),
        (Settings(host="0.0.0.0", auth=SecretStr("a:b")), False),
        (Settings(host="0.0.0.0", hub_login="optional"), True),
        (Settings(host="0.0.0.0", hub_login="required"), False),
    ],
)
def test_open_doors_are_announced(settings: Settings, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        _warn_of_exposure(settings)
    assert ("OMNI_AUTH" in caplog.text) == warned


class Loading(ScriptedEngine):
    """A builtin engine that is ready when it is told to be."""

    def status(self) -> EngineStatus:
        return replace(super().status(), name="builtin")

    async def start(self) -> None:
        await asyncio.Event().wait()


@pytest.mark.anyio
async def test_an_engine_that_still_loads_is_not_sent_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, fresh = Loading(), Loading()
    runner = Runner(engine, "", 1)
    runner.start()
    monkeypatch.setattr(launch, "LOOK_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(launch, "choose", lambda _: (fresh, ""))
    watching = asyncio.create_task(launch.rest_when_idle(Settings(idle_minutes=1e-9), runner))
    for _ in range(20):
        await asyncio.sleep(0)
    assert runner.engine is engine
    engine.started = True
    await asyncio.wait_for(engine.closed.wait(), 5)
    assert runner.engine is fresh
    watching.cancel()
    await runner.close()


def test_recordings_that_a_killed_server_never_had_a_turn_for_go_with_the_next_start(tmp_path: Path) -> None:
    waiting = tmp_path / "utterances"
    killed, running, earlier = (waiting / name / "a.wav" for name in (str(2**30), str(os.getppid()), "."))
    for file in (killed, running, earlier):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"RIFF")
    launch.assemble(Settings(data_dir=tmp_path), Runner(ScriptedEngine(), "", 1), Replies(), None)
    assert [file.exists() for file in (killed, running, earlier)] == [False, True, False]


def test_default_start_loads_nothing_heavy() -> None:
    heavy = "torch transformers vllm onnxruntime onnx xllamacpp moonshine_voice rapidocr cv2 av kokoro_onnx"
    code = f"import sys, omni_app.ui.launch; print([m for m in {heavy.split()!r} if m in sys.modules])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
