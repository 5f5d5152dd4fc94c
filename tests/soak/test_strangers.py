"""Without credentials nothing is told: every route of the running app, and one visitor's files asked for by another."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from omni_app.hub_login import LOGIN, OPEN
from omni_app.runner import Runner
from omni_app.settings import Settings
from omni_app.ui.launch import serve
from tests import scripted_openid
from tests.media import makers
from tests.scripted import ScriptedEngine

SECRET = "only for ann"
PUBLIC = {
    "/health", "/login", "/login/", "/logout", "/logout/", "/favicon.ico", "/robots.txt", "/manifest.json",
    "/theme.css", "/gradio_api/theme.css", "/openapi.json", "/gradio_api/app_id", "/gradio_api/app_id/",
    "/gradio_api/heartbeat/x", "/gradio_api/startup-events", "/gradio_api/token", "/gradio_api/token/",
    "/gradio_api/user", "/gradio_api/user/",
}  # fmt: skip
"""What tells a stranger nothing of anybody: signs of life, looks, the shape of Gradio's routes, "you are nobody"."""
PAGES = {"/", "/quantize", "/system"}
"""Answered with the login form in place of the page."""
FORWARD = {"/quantize/", "/system/"}
EMPTY_HANDED = (400, 401, 403, 404, 405, 422)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    data = tmp_path_factory.mktemp("strangers")
    settings = Settings(data_dir=data, port=0, auth=SecretStr("ann:secret"))
    demo, url = serve(settings, Runner(ScriptedEngine(), SECRET, 2))
    yield url, demo.app
    demo.close()


def flat(routes: Iterable[Any]) -> Iterator[Any]:
    """The routes, and in place of each router that FastAPI holds as one route those of the router."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        yield from flat(inner.routes) if inner else (route,)


def ways_in(app: Any) -> list[tuple[str, str]]:
    """(method, path) of every route, with something in the place of each parameter."""
    found = {
        (method, re.sub(r"\{[^}]*\}", "x", route.path) or "/")
        for route in flat(app.routes)
        for method in (getattr(route, "methods", None) or {"GET"})
    }
    return sorted(found)


def let_in(url: str, app: Any) -> set[str]:
    """The paths that answer somebody without credentials with anything but a refusal."""
    tried, found = ways_in(app), set()
    with httpx.Client(base_url=url, timeout=10) as client:
        for method, path in tried:
            with client.stream(method, path, json={}) as answer:
                if answer.status_code not in EMPTY_HANDED:
                    found.add(path)
    assert {"/v1/chat/completions", "/gradio_api/voice/x", "/gradio_api/export/x"} <= {path for _, path in tried}
    return found


def test_a_stranger_is_let_in_by_no_route(guarded: tuple[str, Any]) -> None:
    assert let_in(*guarded) - PUBLIC - PAGES - FORWARD == set()


def test_where_signing_in_is_required_only_the_way_to_it_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scripted_openid.providing("hf_of_ann") as provider:
        for name, value in provider.variables().items():
            monkeypatch.setenv(name, value)
        settings = Settings(data_dir=tmp_path, port=0, hub_login="required")
        demo, url = serve(settings, Runner(ScriptedEngine(), SECRET, 2))
        try:
            assert let_in(url, demo.app) - OPEN == set()
            page = httpx.get(url, headers={"accept": "text/html"})
            assert (page.status_code, SECRET in page.text, LOGIN in page.text) == (401, False, True)
            with httpx.Client(base_url=url, follow_redirects=True, timeout=20) as ann:
                assert SECRET in ann.get(LOGIN, headers={"accept": "text/html"}).text
                assert ann.get("/v1/models").status_code == 200
        finally:
            demo.close()


@pytest.mark.parametrize("page", sorted(PAGES))
def test_pages_show_a_stranger_the_login_and_nothing_else(guarded: tuple[str, Any], page: str) -> None:
    text = httpx.get(guarded[0].rstrip("/") + page).text
    assert re.search(r'"auth_required":\s*true', text)
    assert SECRET not in text
    assert re.search(r'"components":\s*\[\]', text)


def test_a_kept_file_cannot_be_attached_by_another_visitor_who_knows_its_path(tmp_path: Path) -> None:
    engine = ScriptedEngine(0.0)
    demo, url = serve(Settings(data_dir=tmp_path, port=0), Runner(engine, "Chosen by the test.", 2))
    kept = tmp_path / "visitors" / "ann" / "talk" / "media" / "picture.png"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(makers.picture(makers.field(), "PNG"))
    try:
        with httpx.Client(base_url=url, timeout=20) as client:
            client.get("/", headers={"accept": "text/html"})
            assert sent(client, "no file", []) is True
            assert sent(client, "with hers", [{"path": str(kept), "meta": {"_type": "gradio.FileData"}}]) is False
    finally:
        demo.close()
    assert [messages[-1].text for messages, _ in engine.asked] == ["no file"]


def sent(client: httpx.Client, text: str, files: list[dict[str, Any]]) -> bool:
    """Send a message as the page does; whether it was taken."""
    config = client.get("/config").json()
    box = next(one["id"] for one in config["components"] if one["props"].get("elem_id") == "box")
    event = next(one for one in config["dependencies"] if [box, "submit"] in one["targets"] and one["backend_fn"])
    data = [{"text": text, "files": files}, "", False, "automatic", 0, 0.2, ""]
    join = {"data": data, "fn_index": event["id"], "session_hash": text.replace(" ", "")}
    joined = client.post("/gradio_api/queue/join", json=join)
    if joined.status_code != 200:
        return False
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": join["session_hash"]}) as stream:
        for line in stream.iter_lines():
            told = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if told.get("msg") == "process_completed":
                return bool(told["success"])
    raise AssertionError("the stream ended before the message was dealt with")
