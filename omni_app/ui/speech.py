"""The two routes that carry sound: speech to the browser, and a recorded utterance from it.

They live under `/gradio_api/` so that they also pass a front proxy which forwards only Gradio's own paths. Protocol:

    GET  gradio_api/voice/{run}     s16le mono PCM, chunked, from the first sample; header X-Sample-Rate in Hz.
                                    404 for a run that is not this visitor's, 204 when the reply ended without speech.
    POST gradio_api/utterance       body: a sound file; answers {"id": ...} that the page then sends as a turn.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import cast

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from omni_app.access import Inbox
from omni_app.conversation import AudioDelta, Part
from omni_app.errors import MediaRejected, OmniError, unkept
from omni_app.media import Limits, ingest
from omni_app.ui.live import Replies
from omni_app.ui.visitor import visitor_of

log = logging.getLogger(__name__)

_STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "Content-Encoding": "identity"}
MOST_UTTERANCES = 256
MOST_OF_ONE_VISITOR = 8
"""The page sends one and asks its turn at once; more only wait where turns are lost."""


class Utterances:
    """Recorded utterances that wait for their turn event, each for its own visitor."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder = folder
        self._limits = limits
        self._waiting: dict[tuple[str, str], Part] = {}

    async def keep(self, visitor: str, sound: bytes) -> str:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unkept("The recording", error) from error
        part = await ingest(sound, name="recording", into=self._folder, limits=self._limits)
        key = secrets.token_urlsafe(16)
        self._waiting[visitor, key] = part
        self._forget_oldest([one for one in self._waiting if one[0] == visitor], MOST_OF_ONE_VISITOR)
        self._forget_oldest(list(self._waiting), MOST_UTTERANCES)
        return key

    def _forget_oldest(self, kept: list[tuple[str, str]], most: int) -> None:
        for one in kept[:-most]:
            forgotten = self._waiting.pop(one)
            if forgotten.path is not None:
                forgotten.path.unlink(missing_ok=True)

    def take(self, visitor: str, key: str, into: Path) -> Part:
        """Moves it to that folder. Raises MediaRejected when there is no such utterance (any more), and OmniError when
        it cannot be moved: then it waits on."""
        part = self._waiting.get((visitor, key))
        if part is None:
            raise MediaRejected("The server no longer has this recording.")
        path = cast(Path, part.path)
        try:
            into.mkdir(parents=True, exist_ok=True)
            moved = replace(part, path=path.rename(into / path.name))
        except OSError as error:
            raise unkept("The recording", error) from error
        del self._waiting[visitor, key]
        return moved


def routes(replies: Replies, utterances: Utterances, limits: Limits) -> list[Route]:
    inbox = Inbox(limits.max_bytes)

    async def voice(request: Request) -> Response:
        reply = replies.heard_by(visitor_of(request), request.path_params["run"])
        if reply is None:
            return Response(status_code=404)
        pieces = reply.speech()
        first = await anext(pieces, None)
        if first is None:
            return Response(status_code=204)
        headers = _STREAM_HEADERS | {"X-Sample-Rate": str(first.sample_rate)}
        return StreamingResponse(_pcm(first, pieces), media_type="application/octet-stream", headers=headers)

    async def utterance(request: Request) -> Response:
        visitor = visitor_of(request)
        if not visitor:
            return _refused("This page needs its cookie, and your login where it asks for one. Please reload it.", 403)
        try:
            async with inbox.raw(request) as sound:
                return JSONResponse({"id": await utterances.keep(visitor, bytes(sound))})
        except OmniError as error:
            return _refused(str(error), error.status)
        except ClientDisconnect:
            log.info("a visitor left while sending a recording")
            return Response()

    return [
        Route("/gradio_api/voice/{run}", voice, methods=["GET"]),
        Route("/gradio_api/utterance", utterance, methods=["POST"]),
    ]


async def _pcm(first: AudioDelta, rest: AsyncIterator[AudioDelta]) -> AsyncIterator[bytes]:
    yield first.pcm
    async for piece in rest:
        yield piece.pcm


def _refused(why: str, status: int) -> Response:
    return JSONResponse({"error": why}, status_code=status)
