"""An engine that plays a script, and callers of the API in front of it."""

import asyncio
import base64
import io
import wave
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from typing import Any

import httpx
import openai
from PIL import Image
from starlette.requests import Request

from omni_app.conversation import AudioDelta, Event, Message, Part, ReplyEnd, ReplyOptions, ReplyStats, TextDelta
from omni_app.engines.base import EngineStatus
from omni_app.settings import Settings

PCM = bytes(range(256)) * 40
REPLY: tuple[Event, ...] = (
    TextDelta("Grüß "),
    AudioDelta(PCM, 24_000),
    TextDelta("Gott! 你好 🎈"),
    AudioDelta(PCM[:3000], 24_000),
    ReplyStats(11, 7),
    ReplyEnd(),
)
HELLO = [{"role": "user", "content": "hello"}]
JSON = {"content-type": "application/json"}


class FakeEngine:
    """Plays a script: events are said, errors raised, asyncio.Events waited for. It is its own runner."""

    def __init__(self, *script: Event | Exception | asyncio.Event) -> None:
        self.script = script or REPLY
        self.asked: list[tuple[list[Message], ReplyOptions]] = []
        self.saw: list[bytes] = []
        self.begun = asyncio.Event()
        self.closed = asyncio.Event()
        self.ready = True
        self.speaks = True

    async def start(self) -> None:
        self.ready = True

    async def close(self) -> None:
        self.ready = False

    def status(self) -> EngineStatus:
        why = "It plays its script." if self.ready else "Loading the model."
        kinds = frozenset({"text", "image", "audio"})
        return EngineStatus("fake", "tiny-omni", self.ready, why, ("Ethan", "Chelsie"), kinds, self.speaks)

    async def reply(self, messages: Sequence[Message], options: ReplyOptions) -> AsyncGenerator[Event, None]:
        self.asked.append((list(messages), options))
        self.saw += [part.path.read_bytes() for one in messages for part in one.media if part.path]
        self.begun.set()
        try:
            for step in self.script:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    yield step
        finally:
            self.closed.set()

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.asked[-1][0][-1].parts


class EchoEngine(FakeEngine):
    """Says back what it was told, letting others speak between two letters."""

    async def reply(self, messages: Sequence[Message], options: ReplyOptions) -> AsyncGenerator[Event, None]:
        for letter in messages[-1].text:
            await asyncio.sleep(0)
            yield TextDelta(letter)
        yield ReplyEnd()


def settings(**fields: Any) -> Settings:
    return Settings(_env_file=None, **fields)


def stock(client: httpx.AsyncClient, key: str = "none") -> openai.AsyncOpenAI:
    base = f"{client.base_url}".rstrip("/") + "/v1"
    return openai.AsyncOpenAI(base_url=base, api_key=key, max_retries=0, http_client=httpx.AsyncClient(trust_env=False))


async def ask(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/chat/completions", json={"messages": HELLO, **fields})


def said(response: httpx.Response, status: int) -> str:
    """The message of an OpenAI-shaped error."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == status
    return str(error["message"])


async def collect(source: AsyncIterable[Any], into: list[Any]) -> None:
    """Keeps what came before an error."""
    async for one in source:
        into.append(one)  # noqa: PERF401


def arriving(body: bytes) -> Request:
    """A request whose body comes in pieces."""
    pieces = [body[at : at + 2**16] for at in range(0, len(body), 2**16)]
    messages = iter([{"type": "http.request", "body": one, "more_body": True} for one in pieces])

    async def receive() -> Any:
        return next(messages, {"type": "http.request"})

    return Request({"type": "http", "headers": [(b"content-type", b"application/json")]}, receive)


class RawCaller:
    """Sends a request body as slowly as it likes, and hears the answer while it still sends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def of(cls, client: httpx.AsyncClient, length: int) -> "RawCaller":
        caller = cls(*await asyncio.open_connection(client.base_url.host, client.base_url.port))
        head = f"host: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close"
        caller.send(f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n\r\n".encode())
        return caller

    def send(self, piece: bytes) -> None:
        self._writer.write(piece)

    def leave(self) -> None:
        self._writer.close()

    async def answer(self, status: int = 0) -> str:
        answer = (await asyncio.wait_for(self._reader.read(), 20)).decode()
        self._writer.close()
        assert not status or answer.startswith(f"HTTP/1.1 {status} "), answer
        return answer


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (48, 32), (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


def wav(seconds: float = 0.5) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 16_000, 0, "NONE", ""))
        out.writeframes(b"\x10\x00\x20\x01" * int(8_000 * seconds))
    return file.getvalue()


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()
