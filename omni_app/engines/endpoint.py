"""Whatever server OMNI_ENDPOINT names: asked once what it is, then left to the engine that speaks its dialect."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from omni_app import wire
from omni_app.conversation import Event, Message, ReplyOptions
from omni_app.engines.base import Engine, EngineStatus
from omni_app.engines.dialects import Dialect, recognise
from omni_app.engines.openai_compatible import OpenAICompatibleEngine
from omni_app.engines.vllm_omni import VllmOmniEngine
from omni_app.errors import EngineUnavailable, OmniError
from omni_app.settings import Settings

NAME = "endpoint"


class EndpointEngine:
    """Asks at its first start that finds the server; a server that is down now may come up later as anything."""

    def __init__(self, settings: Settings, *, tries: int = 10, pause_s: float = 1.0) -> None:
        self._settings = settings
        self._tries, self._pause_s = tries, pause_s
        self._server = wire.Connection(settings)
        self._engine: Engine | None = None
        self._because = ""
        """What the server is, for an engine that does not say it itself."""

    async def start(self) -> None:
        await (self._engine or await self._asked()).start()

    def status(self) -> EngineStatus:
        if self._engine is None:
            return EngineStatus(NAME, "", ready=False, why=self._server.trouble or "", speaks=False)
        status = self._engine.status()
        return replace(status, why=self._because + status.why) if status.ready else status

    async def reply(self, messages: Sequence[Message], options: ReplyOptions) -> AsyncGenerator[Event, None]:
        engine = self._engine or await self._asked()
        async with aclosing(engine.reply(messages, options)) as events:
            async for event in events:
                yield event

    async def close(self) -> None:
        await self._server.close()
        if self._engine is not None:
            await self._engine.close()

    async def _asked(self) -> Engine:
        """Raises EngineUnavailable when the server does not say what it is."""
        try:
            dialect = await self._dialect()
        except OmniError as error:
            self._server.trouble = str(error)
            raise EngineUnavailable(str(error)) from error
        make: type[VllmOmniEngine | OpenAICompatibleEngine] = OpenAICompatibleEngine
        if dialect.speech == "vllm-omni":
            make, self._because = VllmOmniEngine, f"It is {dialect.name}. "
        self._engine = make(self._settings, tries=self._tries, pause_s=self._pause_s)
        return self._engine

    async def _dialect(self) -> Dialect:
        await self._server.wait_until_ready(wire.MODELS, tries=self._tries, pause_s=self._pause_s)
        entry, _ = await self._server.listed_model()
        return await recognise(self._server, entry)
