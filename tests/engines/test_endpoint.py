"""OMNI_ENDPOINT keeps its address while the server behind it becomes another kind: it is recognised anew."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from omni_app.engines.endpoint import EndpointEngine
from omni_app.errors import EngineUnavailable
from omni_app.settings import Settings
from tests.engines.dialect_servers import (
    DONE,
    REPLY,
    SPOKEN,
    TEXT_REPLY,
    USAGE,
    WORDS,
    EdgeLLM,
    OpenAIAudio,
    PlainVLLM,
    ScriptedServer,
    SGLangOmni,
    b64,
    delta,
    outcome,
    sse,
)

pytestmark = pytest.mark.anyio


class VllmOmni(PlainVLLM):
    """vllm-omni 0.30; chunks as in tests/data/vllm_omni_0_30."""

    kinds = ("image", "audio", "video")
    speaks = True

    def __init__(self) -> None:
        super().__init__()
        self.pages["/metrics"] = PlainTextResponse("# HELP vllm_omni:requests_success x\n")

    def chunks(self, body: Mapping[str, Any]) -> Iterator[bytes]:
        for number, word in enumerate(WORDS):
            yield sse(delta(content=word) | {"modality": "text"})
            if self.wants_speech(body):
                yield sse(delta(content=b64(SPOKEN[number].pcm)) | {"modality": "audio"})
        yield sse(delta("stop"))
        yield sse(delta() | {"choices": [], "usage": USAGE})
        yield DONE


class Address:
    """Where now this server listens, now that one, or a proxy alone; `asked` are the GET requests."""

    def __init__(self, server: ScriptedServer | None = None) -> None:
        self.server = server
        self.asked: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self.asked += [request.url.path] if request.method == "GET" else []
        await (self.server or PlainTextResponse("", 502))(scope, receive, send)


Connect = Callable[[Address], Awaitable[EndpointEngine]]


@pytest.fixture
async def connect(serve: Any) -> AsyncIterator[Connect]:
    engines: list[EndpointEngine] = []

    async def made(address: Address) -> EndpointEngine:
        settings = Settings(_env_file=None, endpoint=await serve(address))
        engines.append(EndpointEngine(settings, tries=2, pause_s=0.01))
        return engines[-1]

    yield made
    for engine in engines:
        await engine.close()


def text_and(speech: bool) -> list[Any]:
    return REPLY if speech else TEXT_REPLY


KINDS = [VllmOmni, SGLangOmni, PlainVLLM, EdgeLLM, OpenAIAudio]
ONE_AFTER_ANOTHER = [*KINDS, VllmOmni, PlainVLLM, SGLangOmni, VllmOmni, EdgeLLM]


@pytest.mark.parametrize(("before", "after"), list(itertools.pairwise(ONE_AFTER_ANOTHER)))
async def test_another_kind_after_an_outage_is_asked_in_its_own_way(
    connect: Connect, before: type[ScriptedServer], after: type[ScriptedServer]
) -> None:
    address = Address(before())
    engine = await connect(address)
    await engine.start()
    assert (await outcome(engine))[1] is None
    address.server = None
    assert isinstance((await outcome(engine))[1], EngineUnavailable)
    address.server = after()
    assert await outcome(engine) == (text_and(after.speaks), None)
    assert engine.status().speaks is after.speaks
    assert engine.status().modalities == {"text", *address.server.kinds}


@pytest.mark.parametrize(
    ("before", "after"), [(VllmOmni, EdgeLLM), (VllmOmni, OpenAIAudio), (SGLangOmni, EdgeLLM), (EdgeLLM, OpenAIAudio)]
)
async def test_what_the_new_kind_refuses_is_asked_again_in_its_own_way_before_the_visitor_hears_of_it(
    connect: Connect, before: type[ScriptedServer], after: type[ScriptedServer]
) -> None:
    address = Address(before())
    engine = await connect(address)
    await engine.start()
    address.server = after()
    assert await outcome(engine) == (REPLY, None)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (VllmOmni(), PlainVLLM()),
        (SGLangOmni(), PlainVLLM()),
        (VllmOmni(), SGLangOmni(speaks=False)),
        (SGLangOmni(), SGLangOmni(speaks=False)),
    ],
)
async def test_an_answer_that_does_not_fit_tells_before_the_next_question(
    connect: Connect, before: ScriptedServer, after: ScriptedServer
) -> None:
    address = Address(before)
    engine = await connect(address)
    await engine.start()
    await outcome(engine)
    assert engine.status().speaks
    address.server = after
    assert await outcome(engine) == (TEXT_REPLY, None)
    assert engine.status().ready
    assert not engine.status().speaks
    assert engine.status().modalities == {"text", *after.kinds}


@pytest.mark.parametrize("server", [kind() for kind in KINDS])
async def test_answers_like_those_before_ask_nothing_more(connect: Connect, server: ScriptedServer) -> None:
    address = Address(server)
    engine = await connect(address)
    await engine.start()
    await outcome(engine)
    asked, answered = len(address.asked), len(server.bodies)
    for _ in range(3):
        await outcome(engine)
    assert len(address.asked) == asked
    assert len(server.bodies) == answered + 3


async def test_a_server_that_dies_while_it_starts_may_come_up_as_another_kind(connect: Connect) -> None:
    starting = VllmOmni()
    starting.pages["/health"] = PlainTextResponse("", 503)
    address = Address(starting)
    engine = await connect(address)
    with pytest.raises(EngineUnavailable):
        await engine.start()
    address.server = SGLangOmni()
    assert await outcome(engine) == (REPLY, None)


async def test_a_failure_of_the_same_server_stays_what_it_is(connect: Connect) -> None:
    server = SGLangOmni()
    address = Address(server)
    engine = await connect(address)
    await engine.start()
    server.script = PlainTextResponse("CUDA error", 500)
    posted = len(server.bodies)
    _, error = await outcome(engine)
    assert "CUDA error" in str(error)
    assert len(server.bodies) == posted + 1
