"""Callers that leave early, and what the API tells of itself."""

import asyncio
import json
from typing import Any

import pytest

from omni_app import api as api_module
from omni_app.conversation import AudioDelta, Event, TextDelta
from omni_app.errors import EngineAtCapacity
from tests.api.callers import (
    HELLO,
    PCM,
    EchoEngine,
    FakeEngine,
    RawCaller,
    ask,
)

pytestmark = pytest.mark.anyio


class TestLeaving:
    @pytest.mark.parametrize("stream", [True, False])
    @pytest.mark.parametrize("first", [[], [TextDelta("so far")]])
    async def test_a_caller_who_leaves_stops_the_reply(self, api: Any, stream: bool, first: list[Event]) -> None:
        engine = FakeEngine(*first, asyncio.Event())
        client = await api(engine)
        asking = asyncio.create_task(ask(client, stream=stream))
        await engine.begun.wait()
        assert not engine.closed.is_set()
        asking.cancel()
        await asyncio.wait_for(engine.closed.wait(), 5)

    async def test_a_caller_who_takes_nothing_any_more_stops_the_reply(
        self, api: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(api_module, "SEND_SECONDS", 0.1)
        engine = FakeEngine(*[AudioDelta(bytes(48_000), 24_000)] * 1000, asyncio.Event())  # more than systems hold
        question = json.dumps({"messages": HELLO, "stream": True}).encode()
        caller = await RawCaller.of(await api(engine), len(question))
        caller.send(question)
        await asyncio.wait_for(engine.closed.wait(), 20)
        caller.leave()

    async def test_eight_callers_at_once_are_not_mixed_up(self, api: Any) -> None:
        client = await api(EchoEngine())
        words = [f"caller {number} " * 20 for number in range(8)]
        asked = ({"messages": [{"role": "user", "content": word}], "modalities": ["text"]} for word in words)
        answers = await asyncio.gather(*(ask(client, **fields) for fields in asked))
        assert [one.json()["choices"][0]["message"]["content"] for one in answers] == words


class TestWatching:
    async def test_health(self, api: Any) -> None:
        engine = FakeEngine()
        client = await api(engine)
        assert (await client.get("/health")).json() == {"status": "healthy"}
        engine.ready = False
        response = await client.get("/health")
        assert response.status_code == 503
        assert response.json() == {"status": "unhealthy", "why": "Loading the model."}

    async def test_metrics_count_what_happened(self, api: Any) -> None:
        engine = FakeEngine()
        client = await api(engine)
        bad_picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        await ask(client)
        await ask(client, stream=True)
        await ask(client, modalities=["smell"])
        await ask(client, messages=[{"role": "user", "content": [bad_picture]}])
        engine.script = (EngineAtCapacity("Full."),)
        await ask(client)
        page = (await client.get("/metrics")).text
        for line in (
            'omni_requests_total{outcome="ok"} 2.0',
            'omni_requests_total{outcome="bad_request"} 1.0',
            'omni_requests_total{outcome="media_rejected"} 1.0',
            'omni_requests_total{outcome="at_capacity"} 1.0',
            "omni_replies_running 0.0",
            "omni_first_text_seconds_count 2.0",
            "omni_first_sound_seconds_count 2.0",
            "omni_media_rejected_total 1.0",
        ):
            assert line in page.splitlines()
        (speech_s,) = (line.split()[1] for line in page.splitlines() if line.startswith("omni_speech_seconds_total "))
        assert float(speech_s) == pytest.approx(2 * (len(PCM) + 3000) / 48_000)
