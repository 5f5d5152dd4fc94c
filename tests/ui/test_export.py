"""The archive of a conversation, which may be larger than the memory."""

from __future__ import annotations

import errno
import io
import os
import tracemalloc
import zipfile
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from omni_app.conversation import Part
from omni_app.ui import export
from omni_app.ui.store import Conversation, Store, Turn
from omni_app.ui.visitor import COOKIE, name_of

pytestmark = pytest.mark.anyio
COOKIES = {COOKIE: "A" * 43}
CLIP = os.urandom(8 * 2**20)


@pytest.fixture
def conversation(tmp_path: Path) -> tuple[Starlette, Conversation]:
    store = Store(tmp_path)
    conversation = store.new(name_of(COOKIES))
    conversation.media_folder.mkdir(parents=True)
    clip = conversation.media_folder / "clip.mp4"
    clip.write_bytes(CLIP)
    conversation.turns.append(Turn("user", "look", [Part("video", path=clip, name="clip.mp4")]))
    app = Starlette(routes=export.routes(store))
    app.auth = None
    return app, conversation


def caller(app: Starlette) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here", cookies=COOKIES)


async def test_it_is_made_and_sent_without_being_held(conversation: tuple[Starlette, Conversation]) -> None:
    app, said = conversation
    tracemalloc.start()
    pieces = export._pieces(export.archive(said))
    longest = max(len(piece) for piece in pieces)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert longest == export.PIECE_BYTES
    assert held < len(CLIP) / 2
    async with caller(app) as visitor:
        answer = await visitor.get(f"/gradio_api/export/{said.id}")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as bundle:
        assert bundle.read("media/clip.mp4") == CLIP


async def test_a_full_disk_is_told(
    conversation: tuple[Starlette, Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    app, said = conversation
    monkeypatch.setattr(export, "TemporaryFile", full)
    async with caller(app) as visitor:
        answer = await visitor.get(f"/gradio_api/export/{said.id}")
    assert answer.status_code == 507
    assert "the disk of this server is full" in answer.text
