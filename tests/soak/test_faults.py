"""The model's server dies, freezes or is cut off in mid-answer, the disk is full: what was said stays, the words are
clear, and it works again by itself. How an open page takes a restart of the app: `tests/ui/test_manners.py`; and a
network that drops: `tests/ui/test_network.py`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import resource
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from omni_app import engines
from omni_app.conversation import Message, ReplyOptions, TextDelta
from omni_app.errors import OmniError
from omni_app.runner import Runner
from omni_app.settings import Settings
from tests.media import makers
from tests.soak.app import App, running
from tests.soak.line import line

LONG = [Message.of("user", "slow long story")]
SHORT = [Message.of("user", "are you back")]
BACK_SECONDS = 30.0
SILENCE_SECONDS = 4.0
IN_A_SMALL_DISK = (
    "unshare", "--user", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs -o size=3m none "$0" && exec "$@"',
)  # fmt: skip
"""Runs a command with a disk of 3 MB in the folder that is named next."""


async def told(runner: Runner, messages: list[Message], then: Callable[[], object] = bool) -> tuple[str, str]:
    """The text and the error of an answer; `then` is done at its third word."""
    words: list[str] = []
    try:
        async for event in runner.reply(messages, ReplyOptions(speech=True)):
            words += [event.text] if isinstance(event, TextDelta) else []
            if isinstance(event, TextDelta) and len(words) == 3:
                then()
    except OmniError as error:
        return "".join(words), str(error)
    return "".join(words), ""


async def back(runner: Runner) -> str:
    """The first whole answer of a server that returns."""
    async with asyncio.timeout(BACK_SECONDS):
        while True:
            text, error = await told(runner, SHORT)
            if not error:
                return text
            await asyncio.sleep(0.2)


async def connected(endpoint: str) -> AsyncIterator[Runner]:
    settings = Settings(endpoint=endpoint, silence_seconds=SILENCE_SECONDS)
    spec, because = engines.choose(settings)
    runner = Runner(spec.create(settings), because, 4)
    runner.start()
    yield runner
    await runner.close()


@pytest.mark.anyio
async def test_a_server_killed_in_mid_answer_is_told_and_used_again_when_it_is_back() -> None:
    with running() as server:
        port = httpx.URL(server.url).port or 0
        async for runner in connected(server.url):
            text, error = await told(runner, LONG, server.process.kill)
            assert text.startswith("echo: slow long")
            assert "closed the connection in the middle of the answer" in error
            _, error = await told(runner, SHORT)
            assert "cannot be reached" in error
            with running(port=port):
                assert await back(runner) == "echo: are you back "


@pytest.mark.anyio
async def test_a_frozen_server_is_told_and_used_again_when_it_thaws() -> None:
    with running() as server:
        async for runner in connected(server.url):
            text, error = await told(runner, LONG, server.process.suspend)
            assert text.startswith("echo: slow long")
            assert f"nothing came for {SILENCE_SECONDS:g} seconds" in error, error
            server.process.resume()
            assert await back(runner) == "echo: are you back "


@pytest.mark.anyio
async def test_a_network_that_swallows_everything_is_told_and_used_again_when_it_is_back() -> None:
    with running() as server, line(httpx.URL(server.url).port or 0) as wire:
        async for runner in connected(wire.url):
            text, error = await told(runner, LONG, wire.cut)
            assert text.startswith("echo: slow long")
            assert f"nothing came for {SILENCE_SECONDS:g} seconds" in error
            async with asyncio.timeout(60):
                _, error = await told(runner, SHORT)
            assert "does not answer in time" in error, error
            wire.mend()
            assert await back(runner) == "echo: are you back "


def test_on_a_full_disk_questions_are_answered_and_files_refused_until_there_is_room() -> None:
    with running() as app:
        assert asked(app, with_file=True).status_code == 200
        limit = app.process.rlimit(resource.RLIMIT_FSIZE)
        app.process.rlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
        refused = asked(app, with_file=True)
        assert refused.status_code == 507
        assert "Free some disk space" in refused.json()["error"]["message"]
        assert asked(app, with_file=False).status_code == 200
        app.process.rlimit(resource.RLIMIT_FSIZE, limit)
        assert asked(app, with_file=True).status_code == 200
        assert app.leftovers() == []


def test_a_disk_without_a_free_block_refuses_files_alone_and_keeps_nothing_of_them(tmp_path: Path) -> None:
    if subprocess.run([*IN_A_SMALL_DISK, str(tmp_path), "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system of its own")
    with running(prefix=(*IN_A_SMALL_DISK, str(tmp_path)), folder=tmp_path) as app:
        inside = Path("/proc", str(app.process.pid), "root", *tmp_path.parts[1:])
        filler = inside / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                continue
        refused = asked(app, with_file=True)
        assert refused.status_code == 507
        assert "the disk of this server is full" in refused.json()["error"]["message"]
        form = {"files": ("a.png", makers.picture(makers.field(), "PNG"))}
        uploaded = httpx.post(f"{app.url}gradio_api/upload", files=form, timeout=30)
        assert (uploaded.status_code, "Free some disk space" in uploaded.text) == (507, True)
        assert asked(app, with_file=False).status_code == 200
        assert [path for path in inside.rglob("*") if path.is_file()] == [filler]
        filler.unlink()
        assert asked(app, with_file=True).status_code == 200


def asked(app: App, with_file: bool) -> httpx.Response:
    parts: list[dict[str, Any]] = [{"type": "text", "text": "hello"}]
    if with_file:
        content = base64.b64encode(makers.picture(makers.field(), "PNG")).decode()
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{content}"}})
    body = {"messages": [{"role": "user", "content": parts}], "modalities": ["text"]}
    return httpx.post(f"{app.url}v1/chat/completions", json=body, timeout=30)
