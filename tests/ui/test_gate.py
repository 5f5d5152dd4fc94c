"""What Gradio's own routes are asked and must not break over, at a running app."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from omni_app.media import Limits
from omni_app.runner import Runner
from omni_app.settings import Settings
from omni_app.ui.gate import Gate
from omni_app.ui.launch import serve
from tests.scripted import ScriptedEngine

JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=edge"}
FIELD = b'--edge\r\nContent-Disposition: form-data; name="files"\r\n\r\ntext\r\n'
FILE = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\ncontent\r\n'
END = b"--edge--\r\n"


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gradio")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, uploads: Path) -> Iterator[httpx.Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(uploads))
        settings = Settings(data_dir=tmp_path_factory.mktemp("data"), port=0, max_upload_mb=1, max_media_parts=1)
        demo, url = serve(settings, Runner(ScriptedEngine(), "Chosen by the test.", 2))
        with httpx.Client(base_url=f"{url}gradio_api/", timeout=20, trust_env=False) as opened:
            yield opened
        demo.close()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("queue/join", b'{"data": "\xff"}', 400),
        ("queue/join", b'{"data": [], "fn_index": 100000, "session_hash": "x"}', 400),
        ("mcp/", b'{"jsonrpc": "\xff"}', 400),
        ("call/ask", b" " * 6_000_000, 413),
        ("component_server", b"{}", 404),
        ("process_recording", b"", 404),
    ],
)
def test_bodies_that_gradio_would_break_over_are_refused(
    client: httpx.Client, path: str, body: bytes, status: int
) -> None:
    answer = client.post(path, content=body, headers=JSON)
    assert answer.status_code == status
    assert answer.json()["error"]["message"].endswith((".", "together. Send fewer or smaller files."))


@pytest.mark.parametrize(
    ("body", "query"),
    [(FIELD + FILE + END, ""), (FILE + FIELD + END, "?upload_id=x"), (FILE + b"--edge\r\nno header\r\n\r\n" + END, "")],
)
def test_an_upload_that_fails_leaves_nothing(client: httpx.Client, uploads: Path, body: bytes, query: str) -> None:
    before = sorted(uploads.rglob("*"))
    assert client.post(f"upload{query}", content=body, headers=FORM).status_code in (400, 413)
    assert sorted(uploads.rglob("*")) == before


def test_an_upload_larger_than_all_files_together_is_cut_off(client: httpx.Client, uploads: Path) -> None:
    many = (FILE.replace(b"content", bytes(900_000)) for _ in range(8))
    answer = client.post("upload", content=b"".join([*many, END]), headers=FORM)
    assert answer.status_code == 413
    assert "5 MB that are taken together" in answer.text
    assert [path for path in uploads.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("header", ["host", "x-forwarded-host"])
def test_a_host_that_is_none_is_refused(client: httpx.Client, header: str) -> None:
    assert client.get("/", headers={header: "[::1"}).status_code in (400, 403)


def test_an_address_with_a_zero_byte_leads_nowhere(client: httpx.Client) -> None:
    assert client.get("file=a%00b").status_code == 404


def test_an_address_longer_than_a_file_name_leads_nowhere(client: httpx.Client) -> None:
    assert client.get(client.base_url.join(f"/static/{'a' * 300}")).status_code == 404


async def break_here(scope: Scope, receive: Receive, send: Send) -> None:
    raise OSError(5, "Input/output error") if "disk" in scope["path"] else RuntimeError(scope["path"])


@pytest.mark.anyio
async def test_what_breaks_behind_it_is_a_fault_of_ours_unless_a_body_broke_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(break_here, Limits.of(Settings()), tmp_path)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://here") as caller:
        for path in ("/", "/assets/index.js", "/disk"):
            answer = await caller.get(path)
            assert answer.status_code == 500
            assert answer.json()["error"]["message"].startswith("Something broke on this server")
        assert (await caller.post("/gradio_api/run/ask", json={})).status_code == 400
    told = [(line.levelname, bool(line.exc_info)) for line in caplog.records if line.name == "omni_app.ui.gate"]
    assert told == [("ERROR", True), ("ERROR", False), ("ERROR", False), ("WARNING", False)]


@pytest.mark.anyio
@pytest.mark.parametrize(("size", "status"), [(10**6, 200), (5 * 10**6, 413)])
async def test_the_login_takes_no_files(tmp_path: Path, size: int, status: int) -> None:
    async def read(scope: Scope, receive: Receive, send: Send) -> None:
        body = await Request(scope, receive).body()
        await PlainTextResponse(f"{len(body)}")(scope, receive, send)

    gate = Gate(read, Limits.of(Settings()), tmp_path)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://here") as caller:
        assert (await caller.post("/login", content=bytes(size))).status_code == status


@pytest.mark.anyio
async def test_an_upload_that_begins_when_a_torn_one_is_removed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, removed = asyncio.Event(), asyncio.Event()

    async def take(scope: Scope, receive: Receive, send: Send) -> None:
        torn = b"torn" in scope["query_string"]
        (tmp_path / f"tmp-{torn}").write_bytes(b"content")
        if torn:
            raise ValueError("it broke off")
        begun.set()
        await removed.wait()
        await PlainTextResponse("kept")(scope, receive, send)

    async def late(work: Callable[..., None], *given: Any) -> None:
        following.append(asyncio.create_task(caller.post("/gradio_api/upload")))
        await begun.wait()
        await in_thread(work, *given)
        removed.set()

    following: list[asyncio.Task[httpx.Response]] = []
    in_thread = anyio.to_thread.run_sync
    monkeypatch.setattr(anyio.to_thread, "run_sync", late)
    gate = Gate(take, Limits.of(Settings()), tmp_path)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://here") as caller:
        await caller.post("/gradio_api/upload?torn")
        assert (await following[0]).text == "kept"
    assert sorted(path.name for path in tmp_path.glob("*")) == ["tmp-False"]  # noqa: ASYNC240


def test_a_stream_of_nobody_ends_in_order(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("ERROR"):
        assert "session_not_found" in client.get("queue/data?session_hash=nobody").text
    assert caplog.records == []
