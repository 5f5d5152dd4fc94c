"""What a real vllm-omni 0.30 server sent (benchmarks/gpu/record_server.py; random weights, real protocol)."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from omni_app.conversation import AudioDelta, Event, ReplyEnd, ReplyStats, TextDelta
from omni_app.wire import ReplyDecoder, decode_body, error_from, token_limit

DATA = Path(__file__).parent / "data" / "vllm_omni_0_30"
STREAMS = sorted(DATA.rglob("*.sse.gz"))

pytestmark = pytest.mark.skipif(not STREAMS, reason="no recordings of a real server in tests/data")


def recorded(name: str) -> dict[str, Any]:
    found = list(DATA.rglob(name))
    return json.loads(found[0].read_text()) if found else {}


def decoded(raw: bytes, max_tokens: int | None, step: int) -> list[Event]:
    decoder, events = ReplyDecoder(max_tokens), list[Event]()
    for start in range(0, len(raw), step):
        events += decoder.feed(raw[start : start + step])
    return [*events, *decoder.close()]


def speech(events: list[Event]) -> bytes:
    return b"".join(event.pcm for event in events if isinstance(event, AudioDelta))


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.name.removesuffix(".sse.gz"))
def test_a_stream(path: Path) -> None:
    request = recorded("streams.json")[path.name.removesuffix(".sse.gz")]["request"]
    raw = gzip.decompress(path.read_bytes())
    events = decoded(raw, token_limit(request), len(raw))
    assert decoded(raw, token_limit(request), 997) == events
    # Random weights with ignore_eos run into the token limit; beside speech only the count of the text can show it.
    seen = request["modalities"] == ["text"] or ("text" in request["modalities"] and request.get("stream_options"))
    assert events[-1] == ReplyEnd("length" if seen else "stop")
    assert any(isinstance(event, TextDelta) for event in events) is ("text" in request["modalities"])
    assert bool(speech(events)) is ("audio" in request["modalities"])
    assert {event.sample_rate for event in events if isinstance(event, AudioDelta)} <= {24_000}
    stats = [event for event in events if isinstance(event, ReplyStats)]
    counted = bool(request.get("stream_options")) or "audio" in request["modalities"]
    assert bool(stats) is (counted and "text" in request["modalities"])
    assert all(one.prompt_tokens for one in stats)
    assert any(one.stages for one in stats) is bool(request.get("return_stage_metrics"))


@pytest.mark.parametrize("name", sorted(recorded("whole_answers.json")))
def test_a_whole_answer(name: str) -> None:
    answer = recorded("whole_answers.json")[name]
    body = answer["body"] if isinstance(answer["body"], dict) else json.loads(answer["body"])
    events = decode_body(body, token_limit(answer["request"]))
    assert any(isinstance(event, TextDelta) for event in events)
    assert bool(speech(events)) is ("audio" in answer["request"]["modalities"])
    assert isinstance(events[-1], ReplyEnd)


@pytest.mark.parametrize("name", sorted(key for key, one in recorded("errors.json").items() if one["status"] != 200))
def test_an_error(name: str) -> None:
    answer = recorded("errors.json")[name]
    body = answer["body_text"] if "body_text" in answer else json.dumps(answer["body"])
    error = error_from(answer["status"], body.encode(), server="The server")
    assert any(words in str(error) for words in said(answer.get("body")))


def said(body: Any) -> list[str]:
    """Every sentence in an error body, cut to what we repeat of it."""
    if isinstance(body, dict):
        return [words for one in body.values() for words in said(one)]
    if isinstance(body, list):
        return [words for one in body for words in said(one)]
    return [" ".join(body.split())[:100]] if isinstance(body, str) else []
