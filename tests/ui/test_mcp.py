"""The tool for MCP clients and for Gradio's own API: who may call it, and what it answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio_client import Client
from pydantic import SecretStr
from starlette.middleware import Middleware

from omni_app.access import ToolGuard
from omni_app.media import Limits
from omni_app.runner import Runner
from omni_app.settings import Settings
from omni_app.ui.tools import UNSPOKEN, ask_tool
from tests.scripted import ScriptedEngine

KEY = {"authorization": "Bearer s3cret"}
BASIC = {"authorization": httpx.BasicAuth("ann", "secret")._auth_header}
WRONG = {"authorization": "Bearer wrong"}
AUTH, SERVE_KEY = SecretStr("ann:secret"), SecretStr("s3cret")


def running(runner: Runner) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        runner.start()
        yield
        await runner.close()

    return lifespan


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Serves the tool alone, guarded as these settings say; gives its address."""
    with ExitStack() as stack:

        def started(**fields: Any) -> str:
            settings = Settings(data_dir=tmp_path, **fields)
            runner = Runner(ScriptedEngine(0.0), "Chosen by the test.", 4)
            with gr.Blocks(analytics_enabled=False) as demo:
                gr.api(ask_tool(runner, Limits.of(settings)), api_name="ask", concurrency_limit=None, queue=False)
            user, _, password = settings.auth.get_secret_value().partition(":")
            _, url, _ = demo.queue().launch(
                prevent_thread_lock=True, quiet=True, ssr_mode=False, mcp_server=True, show_error=True,
                auth=(user, password) if user else None,
                app_kwargs={"middleware": [Middleware(ToolGuard, settings=settings)], "lifespan": running(runner)},
            )  # fmt: skip
            stack.callback(demo.close)
            return url

        yield started


def rpc(url: str, method: str, headers: dict[str, str], **params: Any) -> httpx.Response:
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    accept = {"accept": "application/json, text/event-stream"}
    return httpx.post(url + "gradio_api/mcp/", json=body, headers=accept | headers, timeout=30)


def told(url: str, headers: dict[str, str], **arguments: Any) -> list[str]:
    """The texts of the tool's answer."""
    answer = rpc(url, "tools/call", headers, name="ask", arguments=arguments)
    assert answer.status_code == 200, answer.text
    (data,) = (line for line in answer.text.splitlines() if line.startswith("data:"))
    return [one["text"] for one in json.loads(data.removeprefix("data:"))["result"]["content"]]


def cookie(url: str) -> dict[str, str]:
    """The header that a visitor sends after the login on the page."""
    answer = httpx.post(url + "login", data={"username": "ann", "password": "secret"})
    return {"cookie": "; ".join(f"{name}={value}" for name, value in answer.cookies.items())}


def refused(url: str, headers: dict[str, str]) -> set[int]:
    """The statuses of every way to the tool."""
    return {
        rpc(url, "tools/list", headers).status_code,
        rpc(url, "tools/call", headers, name="ask", arguments={"message": "hi"}).status_code,
        httpx.get(url + "gradio_api/mcp/schema", headers=headers).status_code,
        *(
            httpx.post(url + f"gradio_api/{way}/ask", json={"data": ["hi", "", False, ""]}, headers=headers).status_code
            for way in ("call", "call/v2", "run", "api")
        ),
    }


def test_answers_are_texts_and_never_empty(start: Callable[..., str]) -> None:
    url = start()
    assert told(url, {}, message="hello") == ["echo: hello ", UNSPOKEN]
    text, speech = told(url, {}, message="hello", speech=True)
    assert text == "echo: hello "
    assert speech.startswith("data:audio/wav;base64,UklGR")
    (wrong,) = told(url, {}, message="hello", attachment="https://example.com/cat.png")
    assert wrong.startswith("Only data URLs are taken")


def test_login_lets_in_with_password_and_with_cookie(start: Callable[..., str]) -> None:
    url = start(auth=AUTH)
    assert refused(url, {}) == refused(url, WRONG) == {401}
    assert "HTTP Basic" in rpc(url, "tools/list", {}).json()["error"]["message"]
    for headers in (BASIC, cookie(url)):
        assert told(url, headers, message="hello")[0] == "echo: hello "
        assert httpx.get(url + "gradio_api/mcp/schema", headers=headers).json()[0]["name"] == "ask"


def test_key_lets_in_and_the_page_needs_none(start: Callable[..., str]) -> None:
    url = start(serve_key=SERVE_KEY)
    assert refused(url, {}) == refused(url, WRONG) == {401}
    assert told(url, KEY, message="hello")[0] == "echo: hello "
    call = httpx.post(url + "gradio_api/call/ask", json={"data": ["hello", "", False, ""]}, headers=KEY)
    result = httpx.get(url + f"gradio_api/call/ask/{call.json()['event_id']}", headers=KEY)
    assert json.loads(result.text.split("data: ")[1]) == ["echo: hello ", UNSPOKEN]
    assert httpx.get(url + f"gradio_api/call/ask/{call.json()['event_id']}").status_code == 401
    assert httpx.get(url + "config").status_code == 200


def test_key_and_login_both_open_the_tool(start: Callable[..., str]) -> None:
    url = start(auth=AUTH, serve_key=SERVE_KEY)
    assert refused(url, BASIC) == {401}
    for headers in (KEY, cookie(url)):
        assert told(url, headers, message="hello")[0] == "echo: hello "


def test_other_sites_are_refused_even_with_the_cookie(start: Callable[..., str]) -> None:
    url = start(auth=AUTH)
    assert refused(url, cookie(url) | {"origin": "https://evil.example"}) == {403}


def test_names_bent_to_this_machine_are_refused(start: Callable[..., str]) -> None:
    assert refused(start(), {"host": "evil.example", "origin": "http://evil.example"}) == {403}


def test_gradio_client_is_answered_too(start: Callable[..., str]) -> None:
    client = Client(start(), verbose=False)
    assert tuple(client.predict("hello", "", False, "", api_name="/ask")) == ("echo: hello ", UNSPOKEN)
