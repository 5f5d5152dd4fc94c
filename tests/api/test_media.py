"""Media that come with a request."""

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from omni_app import access
from omni_app.conversation import ReplyEnd
from tests.api.callers import (
    FakeEngine,
    RawCaller,
    arriving,
    ask,
    b64,
    png,
    said,
    wav,
)

pytestmark = pytest.mark.anyio


class TestMedia:
    async def test_media_reach_the_engine_and_are_gone_after(self, api: Any) -> None:
        engine = FakeEngine()
        parts = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64(png())}"}},
            {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{b64(wav())}"}},
            {"type": "input_audio", "input_audio": {"data": b64(wav(1)), "format": "wav"}},
            {"type": "text", "text": "what is this?"},
        ]
        response = await ask(await api(engine), messages=[{"role": "user", "content": parts}])
        assert response.status_code == 200, response.text
        assert [part.kind for part in engine.parts] == ["image", "audio", "audio", "text"]
        assert engine.saw[0][:2] == b"\xff\xd8"
        assert engine.saw[2][:4] == b"RIFF"
        assert not any(part.path.parent.exists() for part in engine.parts if part.path)

    async def test_what_a_killed_server_left_is_swept_at_the_next_start(self, api: Any, tmp_path: Path) -> None:
        requests = tmp_path / "data" / "requests"
        killed, running = requests / str(2**30) / "tmp1", requests / str(os.getppid()) / "tmp2"
        for folder in (killed, running):
            folder.mkdir(parents=True)
            (folder / "media.wav").write_bytes(wav())
        engine = FakeEngine()
        client = await api(engine)
        assert not killed.exists()
        assert (running / "media.wav").exists()
        sound = {"type": "input_audio", "input_audio": {"data": b64(wav()), "format": "wav"}}
        await ask(client, messages=[{"role": "user", "content": [sound]}])
        assert engine.parts[0].path
        assert engine.parts[0].path.is_relative_to(requests)

    @pytest.mark.parametrize(
        ("part", "words"),
        [
            ({"type": "image_url", "image_url": {"url": "https://host/cat.png"}}, "never fetched"),
            ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "never fetched"),
            ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "image"),
            ({"type": "image_url", "image_url": {"url": "data:image/png;base64,A"}}, "base64"),
            ({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64(wav())}"}}, "audio_url"),
            ({"type": "input_audio", "input_audio": {"data": "%%%", "format": "wav"}}, "base64"),
            ({"type": "input_audio", "input_audio": {"data": b64(b"RIFF"), "format": "wav"}}, "audio"),
        ],
    )
    async def test_what_cannot_be_taken(self, api: Any, part: dict[str, Any], words: str) -> None:
        engine = FakeEngine()
        assert words in said(await ask(await api(engine), messages=[{"role": "user", "content": [part]}]), 400)
        assert not engine.asked

    async def test_limits_are_named(self, api: Any) -> None:
        client = await api(FakeEngine(), max_media_parts=1, max_text_chars=10, max_upload_mb=1)
        picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64(png())}"}}
        two = [{"role": "user", "content": [picture, picture]}]
        assert "at most 1" in said(await ask(client, messages=two), 400)
        assert "at most 10" in said(await ask(client, messages=[{"role": "user", "content": "x" * 11}]), 400)

    async def test_a_body_too_large_is_refused_unread(self, api: Any) -> None:
        client = await api(FakeEngine(), max_media_parts=8, max_upload_mb=1)

        async def endless() -> AsyncGenerator[bytes, None]:
            for _ in range(20):
                yield b" " * 2**19

        declared = {"content-type": "application/json", "content-length": str(10 * 2**20)}
        assert "MB" in said(await client.post("/v1/chat/completions", content=endless(), headers=declared), 413)
        chunked = {"content-type": "application/json"}
        assert "MB" in said(await client.post("/v1/chat/completions", content=endless(), headers=chunked), 413)

    async def test_a_body_that_never_ends_is_dropped(self, api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(access, "READ_SECONDS", 0.05)
        caller = await RawCaller.of(await api(FakeEngine()), 100)
        caller.send(b"{")
        assert "did not arrive" in await caller.answer(408)

    async def test_large_bodies_of_others_leave_room_for_questions(self) -> None:
        inbox = access.Inbox(most_bytes := 10**6)
        large = b" " * (most_bytes - 1) + b"1"
        async with inbox.json(arriving(large)), inbox.json(arriving(large)):
            with pytest.raises(access.NoRoom, match="again in a moment"):
                await inbox.json(arriving(large)).__aenter__()
            async with inbox.json(arriving(b"2")) as question:
                assert question == 2
        async with inbox.json(arriving(large)) as value:
            assert value == 1

    async def test_so_many_bodies_at_one_time(self, api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(access, "BODIES_AT_ONCE", 1)
        engine = FakeEngine(go_on := asyncio.Event(), ReplyEnd())
        client = await api(engine)
        first = asyncio.create_task(ask(client))
        await engine.begun.wait()
        assert "again in a moment" in said(await ask(client), 429)
        go_on.set()
        assert (await first).status_code == 200
        assert (await ask(client)).status_code == 200
