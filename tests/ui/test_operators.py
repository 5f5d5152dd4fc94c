"""Who may operate the machine: only whoever sits at it, and nobody for whom a proxy on it asks."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from omni_app.settings import Settings
from omni_app.ui.operators import Operators
from tests.conftest import Serve

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin:/opt/homebrew/bin")
KEPT_OPEN = 'proxy_http_version 1.1; proxy_set_header Connection "";'
"""What nginx does by itself from 1.29.7 on."""
BROWSER = {"origin": "http://omni.example", "referer": "http://omni.example/system"}


def request(http_version: str = "1.1", **headers: str) -> gr.Request:
    named = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return gr.Request(Request({"type": "http", "http_version": http_version, "headers": named}))


def local(http_version: str = "1.1", **headers: str) -> gr.Request:
    return request(http_version, host="127.0.0.1:7860", **headers)


@pytest.mark.parametrize(
    ("options", "password", "asked", "allowed"),
    [
        ({}, "", local(), True),
        ({}, "", request(host="localhost:7860"), True),
        ({}, "", request(host="[::1]:7860"), True),
        ({}, "", request(host="rebound.example:7860"), False),
        ({"host": "0.0.0.0"}, "", local(), False),
        ({"share": True}, "", local(), False),
        ({"proxies": 1}, "", local(), False),
        ({"operator": "sesame"}, "", local(), False),
        ({"operator": "sesame"}, "wrong", local(), False),
        ({"operator": "sesame", "host": "0.0.0.0"}, "sesame", request(host="far.example"), True),
    ],
)
def test_who_may_operate(options: dict[str, Any], password: str, asked: gr.Request, allowed: bool) -> None:
    assert Operators(Settings(**options)).may(password, asked) is allowed


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        (local(connection="keep-alive", origin="http://127.0.0.1:7860", referer="http://127.0.0.1:7860/system"), True),
        (local("1.0"), False),
        (local(connection="close"), False),
        (local(Via="1.1 varnish"), False),
        (local(**{"X-Real-IP": "192.0.2.7"}), False),
        (local(**{"X-Forwarded-For": "192.0.2.7"}), False),
        (local(**{"X-Forwarded-Proto": "https"}), False),
        (local(origin="https://omni.example"), False),
        (local(origin="http://127.0.0.1:8080"), False),
        (local(origin="null"), False),
        (local(origin="http://["), False),
        (local(referer="https://omni.example/system"), False),
    ],
)
def test_what_tells_a_proxy_or_the_page_of_another_site(asked: gr.Request, allowed: bool) -> None:
    assert Operators(Settings()).may("", asked) is allowed


async def _judge(asked: Request) -> Response:
    return PlainTextResponse("operator" if Operators(Settings()).may("", gr.Request(asked)) else "visitor")


JUDGE = Starlette(routes=[Route("/", _judge)])


@contextmanager
def nginx(folder: Path, upstream: str, more: str) -> Iterator[Path]:
    """A real nginx in front of `upstream`; gives the socket on which it listens."""
    if NGINX is None:
        pytest.skip("nginx is not installed")
    listening = folder / "nginx.sock"
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    server = f"server {{ listen unix:{listening}; location / {{ proxy_pass {upstream}; {more} }} }}"
    conf = folder / "nginx.conf"
    conf.write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {temporary} {server} }}\n"
    )
    running = subprocess.Popen([NGINX, "-e", "stderr", "-p", str(folder), "-c", str(conf)])
    try:
        yield listening
    finally:
        running.terminate()
        running.wait(10)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("more", "headers"),
    [
        ("", {}),
        ("proxy_http_version 1.1;", {}),
        (KEPT_OPEN, BROWSER),
        (f"{KEPT_OPEN} proxy_set_header X-Real-IP $remote_addr;", {}),
        (f"{KEPT_OPEN} proxy_set_header Host $host;", {}),
    ],
)
async def test_nobody_operates_through_nginx(more: str, headers: dict[str, str], serve: Serve, tmp_path: Path) -> None:
    upstream = await serve(JUDGE)
    with nginx(tmp_path, upstream, more) as listening:
        road = httpx.AsyncHTTPTransport(uds=str(listening), retries=6)
        async with httpx.AsyncClient(transport=road, base_url="http://omni.example", headers=headers) as client:
            assert (await client.get("/")).text == "visitor"
    async with httpx.AsyncClient() as client:
        assert (await client.get(upstream)).text == "operator"
