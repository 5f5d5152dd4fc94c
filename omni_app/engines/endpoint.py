"""Whatever server OMNI_ENDPOINT names: asked what it is, then left to the engine that speaks its dialect."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

from omni_app import wire
from omni_app.conversation import Event, Message, ReplyOptions, ReplyStats
from omni_app.engines.base import Engine, EngineStatus
from omni_app.engines.dialects import Dialect, recognise
from omni_app.engines.openai_compatible import OpenAICompatibleEngine
from omni_app.engines.vllm_omni import VllmOmniEngine
from omni_app.errors import EngineAtCapacity, EngineUnavailable, OmniError
from omni_app.settings import Settings

log = logging.getLogger(__name__)

NAME = "endpoint"
LASTING = ("id", "owned_by", "root", "max_model_len", "modalities", "speaks")
"""What a `/v1/models` entry says of the server itself; `created` and `permission` are new in each answer of vLLM."""

SPEECH = "speech was asked for"

Kind = tuple[Dialect, tuple[object, ...]]


class EndpointEngine:
    """Asks at its first start that finds the server, and anew once the server was away, refused, or answered as it has
    not answered since: another kind of server may have taken the address. An answer like those before asks nothing."""

    def __init__(self, settings: Settings, *, tries: int = 10, pause_s: float = 1.0) -> None:
        self._settings = settings
        self._tries, self._pause_s = tries, pause_s
        self._server = wire.Connection(settings)
        self._engine: Engine | None = None
        self._kind: Kind | None = None
        self._doubted = False
        self._looks: set[frozenset[str]] = set()
        """How answers have looked since the server was last found to be another one."""
        self._asking = asyncio.Lock()
        self._former: list[Engine] = []
        """Engines for what was at the address before; answers may still come from them."""
        self._because = ""
        """What the server is, for an engine that does not say it itself."""

    async def start(self) -> None:
        engine = await self._known()
        try:
            await engine.start()
        except OmniError:
            self._doubted = True
            raise

    def status(self) -> EngineStatus:
        if self._engine is None:
            return EngineStatus(NAME, "", ready=False, why=self._server.trouble or "", speaks=False)
        status = self._engine.status()
        return replace(status, why=self._because + status.why) if status.ready else status

    async def reply(self, messages: Sequence[Message], options: ReplyOptions) -> AsyncGenerator[Event, None]:
        """Of a server that has become another one, its new engine is asked, unless the answer had begun."""
        engine = await self._known()
        while True:
            look: set[str] = set()
            try:
                async with aclosing(engine.reply(messages, options)) as events:
                    async for event in events:
                        look |= _marks(event)
                        yield event
                break
            except EngineAtCapacity:
                raise
            except OmniError as error:
                self._doubted = True
                successor = None if look or _is_away(error) else await self._successor(engine)
                if successor is None:
                    raise
                engine = successor
        await self._compare(frozenset({SPEECH} if options.speech else ()) | look)

    async def close(self) -> None:
        await self._server.close()
        for engine in (*self._former, self._engine):
            if engine is not None:
                await engine.close()

    async def _compare(self, look: frozenset[str]) -> None:
        """Asks what the server is when no answer has looked like this one, so that its abilities are known before the
        next question."""
        engine = self._engine
        if look in self._looks or engine is None:
            return
        self._looks.add(look)
        self._doubted = True
        successor = await self._successor(engine)
        if successor is None and (SPEECH not in look or "AudioDelta" in look or not engine.status().speaks):
            return
        try:
            await (successor or engine).start()
        except OmniError as error:
            self._doubted = True
            log.warning("the server could not be asked what it can do: %s", error)

    async def _successor(self, engine: Engine) -> Engine | None:
        """The engine for what the server is now; None when that is still the same, or cannot be told now."""
        try:
            found = await self._known()
        except OmniError as error:
            log.warning("the server could not be asked anew what it is: %s", error)
            return None
        return None if found is engine else found

    async def _known(self) -> Engine:
        """Raises EngineUnavailable when the server does not say what it is."""
        async with self._asking:
            if self._engine is None or self._doubted:
                try:
                    dialect, kind = await self._asked(self._tries if self._engine is None else 1)
                except OmniError as error:
                    self._server.trouble = str(error)
                    raise EngineUnavailable(str(error)) from error
                if self._engine is None or kind != self._kind:
                    self._become(dialect, kind)
                self._doubted = False
            assert self._engine is not None
            return self._engine

    def _become(self, dialect: Dialect, kind: Kind) -> None:
        if self._engine is not None:
            self._former.append(self._engine)
            log.warning("another server has taken %s: it is %s", self._server.shown, dialect.name)
        make: type[VllmOmniEngine | OpenAICompatibleEngine] = OpenAICompatibleEngine
        self._because = ""
        if dialect.speech == "vllm-omni":
            make, self._because = VllmOmniEngine, f"It is {dialect.name}. "
        self._engine, self._kind = make(self._settings, tries=self._tries, pause_s=self._pause_s), kind
        self._looks.clear()

    async def _asked(self, tries: int) -> tuple[Dialect, Kind]:
        await self._server.wait_until_ready(wire.MODELS, tries=tries, pause_s=self._pause_s)
        entry, _ = await self._server.listed_model()
        dialect = await recognise(self._server, entry)
        return dialect, (dialect, _lasting(entry))


def _lasting(entry: Mapping[str, object]) -> tuple[object, ...]:
    return tuple(entry.get(name) for name in LASTING)


def _marks(event: Event) -> set[str]:
    """What tells one kind of server from another in its answers: which events come, and of which stages it tells."""
    return {type(event).__name__, *(event.stages if isinstance(event, ReplyStats) else ())}


def _is_away(error: OmniError) -> bool:
    """Whether asking the server now would only make the visitor wait."""
    return isinstance(error, EngineUnavailable) and not isinstance(error.__cause__, wire.NotServed)
