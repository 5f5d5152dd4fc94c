"""A bare HTTP client of the vLLM-Omni chat endpoint for the GPU benchmarks: standard library only, no app code.

The measurements must not contain the cost of a client library, so this module reads the event stream line by line
from a plain socket and notes the time at which each line arrived.
"""

from __future__ import annotations

import base64
import http.client
import json
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

SAMPLE_RATE = 24_000
CODEC_STOP_TOKEN = 2150
Json = dict[str, Any]


@dataclass(frozen=True)
class Server:
    """Where the server listens and under which name it serves the model."""

    host: str
    port: int
    model: str

    def connect(self, timeout: float = 300.0) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout)

    def get(self, path: str, timeout: float = 30.0) -> tuple[int, dict[str, str], bytes]:
        """Fetch one path: status, headers, body."""
        connection = self.connect(timeout)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()


def stage_sampling(text_tokens: int, codec_frames: int, *, fixed_text: bool = True) -> list[Json]:
    """Sampling settings per stage, with caps: random weights never stop by themselves."""
    thinker: Json = {"temperature": 0.0, "max_tokens": text_tokens, "seed": 42, "detokenize": True}
    if fixed_text:
        thinker |= {"min_tokens": text_tokens, "ignore_eos": True}
    talker: Json = {
        "temperature": 0.9,
        "top_k": 50,
        "max_tokens": max(1, codec_frames),
        "seed": 42,
        "repetition_penalty": 1.05,
        "detokenize": False,
        "stop_token_ids": [CODEC_STOP_TOKEN],
    }
    code2wav: Json = {"temperature": 0.0, "max_tokens": 65_536, "seed": 42, "repetition_penalty": 1.1}
    return [thinker, talker, code2wav]


def chat_body(
    server: Server,
    content: str | list[Json],
    *,
    modalities: list[str],
    text_tokens: int,
    codec_frames: int,
    audio_format: str = "pcm",
    **extra: Any,
) -> Json:
    """The body of a streamed chat request; keyword arguments are added at the top level."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    body: Json = {
        "model": server.model,
        "stream": True,
        "modalities": modalities,
        "stream_options": {"include_usage": True},
        "sampling_params_list": stage_sampling(text_tokens, codec_frames),
        "messages": [{"role": "user", "content": parts}],
    }
    if "audio" in modalities:
        body["audio"] = {"format": audio_format}
    return body | extra


@dataclass(frozen=True)
class Piece:
    """One text or sound piece of an answer and when it arrived, in seconds since the request was sent."""

    at: float
    kind: str
    size: int


@dataclass
class Answer:
    """What arrived for one request."""

    status: int = 0
    pieces: list[Piece] = field(default_factory=list)
    seconds: float = 0.0
    usage: Json | None = None
    error: str = ""

    def first(self, kind: str) -> float | None:
        return next((piece.at for piece in self.pieces if piece.kind == kind), None)

    @property
    def sound_seconds(self) -> float:
        return sum(piece.size for piece in self.pieces if piece.kind == "audio") / (2 * SAMPLE_RATE)

    @property
    def real_time_factor(self) -> float | None:
        return self.seconds / self.sound_seconds if self.sound_seconds else None

    @property
    def text_rate(self) -> float | None:
        """Text tokens per second between the first and the last text piece (tokens as the server counts them)."""
        times = [piece.at for piece in self.pieces if piece.kind == "text"]
        tokens = (self.usage or {}).get("completion_tokens") or len(times)
        return (tokens - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else None

    @property
    def longest_silence(self) -> float:
        """Longest wait of a listener who plays each sound piece as soon as the ones before it have been heard."""
        sound = [piece for piece in self.pieces if piece.kind == "audio"]
        if not sound:
            return 0.0
        longest, heard_until = 0.0, sound[0].at
        for piece in sound:
            longest = max(longest, piece.at - heard_until)
            heard_until = max(heard_until, piece.at) + piece.size / (2 * SAMPLE_RATE)
        return longest


def post_lines(
    server: Server, body: Json, timeout: float = 300.0
) -> Generator[tuple[float, http.client.HTTPResponse, bytes], None, None]:
    """Post a chat request and yield (seconds since sending, response, line) as the lines arrive.

    Closing the iterator closes the connection, which is how an answer is stopped.
    """
    connection = server.connect(timeout)
    try:
        started = time.perf_counter()
        payload = json.dumps(body).encode()
        connection.request("POST", "/v1/chat/completions", payload, {"Content-Type": "application/json"})
        response = connection.getresponse()
        while line := response.readline():
            yield time.perf_counter() - started, response, line
    finally:
        connection.close()


def read_event(line: bytes) -> Json | None:
    """The JSON of one `data:` line, or None for blank lines and the closing mark."""
    if not line.startswith(b"data:"):
        return None
    payload = line[5:].strip()
    if payload == b"[DONE]":
        return None
    event: Json = json.loads(payload)
    return event


def pieces_of(event: Json, at: float) -> Iterator[Piece]:
    """The text and sound pieces in one event (sound as raw 16-bit samples)."""
    for choice in event.get("choices") or []:
        content = (choice.get("delta") or {}).get("content")
        if not content:
            continue
        if event.get("modality") == "audio":
            yield Piece(at, "audio", len(base64.b64decode(content)))
        else:
            yield Piece(at, "text", len(content))


def ask(server: Server, body: Json, timeout: float = 300.0) -> Answer:
    """Send one streamed request and read the whole answer."""
    answer = Answer()
    raw: list[tuple[float, bytes]] = []
    try:
        for at, response, line in post_lines(server, body, timeout):
            answer.status, answer.seconds = response.status, at
            raw.append((at, line))
    except (OSError, http.client.HTTPException) as error:
        answer.error = f"{type(error).__name__}: {error}"
    if answer.status != 200:
        answer.error = answer.error or b"".join(line for _, line in raw)[:600].decode(errors="replace")
        return answer
    for at, line in raw:
        event = read_event(line)
        if event is None:
            continue
        if "error" in event:
            answer.error = json.dumps(event["error"])[:600]
        answer.usage = event.get("usage") or answer.usage
        answer.pieces.extend(pieces_of(event, at))
    return answer
