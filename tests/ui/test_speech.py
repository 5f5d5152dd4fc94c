"""Recordings on their way in: bounded all together and for each visitor, and no trace of one whose sender has left."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import Response

from omni_app.errors import MediaRejected, OmniError
from omni_app.media import Limits
from omni_app.settings import Settings
from omni_app.ui.live import Replies
from omni_app.ui.speech import MOST_OF_ONE_VISITOR, MOST_UTTERANCES, Utterances, routes
from tests.media import makers

pytestmark = pytest.mark.anyio
LARGE = b"x" * 990_000
LIMITS = Limits.of(Settings(max_upload_mb=1))


class House:
    def __init__(self, folder: Path) -> None:
        self._post = routes(Replies(), Utterances(folder, LIMITS), LIMITS)[1].endpoint

    async def sent(self, *messages: dict[str, Any], then: asyncio.Event | None = None) -> Response:
        """A recording in pieces; `then` is told when all of them were taken, and the rest never comes."""
        left = list(messages)

        async def receive() -> dict[str, Any]:
            if not left and then is not None:
                then.set()
                await asyncio.Event().wait()
            return left.pop(0)

        headers = [(b"cookie", b"omni_visitor=" + b"A" * 43)]
        scope = {"type": "http", "headers": headers, "app": SimpleNamespace(auth=None)}
        answer: Response = await self._post(Request(scope, receive))
        return answer


def files_in(folder: Path) -> int:
    return len(list(folder.iterdir()))


async def test_recordings_are_taken_in_within_one_bound_for_all(tmp_path: Path) -> None:
    house = House(tmp_path)
    unfinished = []
    for _ in range(2):
        taken = asyncio.Event()
        part = {"type": "http.request", "body": LARGE, "more_body": True}
        unfinished.append(asyncio.create_task(house.sent(part, then=taken)))
        await taken.wait()
    whole = {"type": "http.request", "body": LARGE}
    refused = await house.sent(whole)
    assert refused.status_code == 429
    assert b"again in a moment" in refused.body
    unfinished[0].cancel()
    await asyncio.wait(unfinished[:1])
    assert (await house.sent(whole)).status_code == 400  # it is read, and no sound
    unfinished[1].cancel()


async def test_a_recording_that_cannot_be_moved_waits_on(tmp_path: Path, recording: Path) -> None:
    utterances, into = Utterances(tmp_path / "waiting", LIMITS), tmp_path / "media"
    key = await utterances.keep("visitor", await anyio.Path(recording).read_bytes())
    into.touch()
    with pytest.raises(OmniError, match="The recording could not be kept on this server"):
        utterances.take("visitor", key, into)
    into.unlink()
    with pytest.raises(MediaRejected, match="no longer"):
        utterances.take("somebody else", key, into)
    part = utterances.take("visitor", key, into)
    assert part.path is not None
    assert (part.path.parent, part.path.exists()) == (into, True)
    with pytest.raises(MediaRejected, match="no longer"):
        utterances.take("visitor", key, into)


async def test_who_leaves_while_sending_is_no_fault(tmp_path: Path) -> None:
    part = {"type": "http.request", "body": b"RIFF", "more_body": True}
    assert (await House(tmp_path).sent(part, {"type": "http.disconnect"})).body == b""


async def test_one_visitor_pushes_only_recordings_of_its_own_away(tmp_path: Path) -> None:
    utterances, sound = Utterances(tmp_path, LIMITS), makers.wav(makers.sine(0.1))
    other = await utterances.keep("ann", sound)
    mine = [await utterances.keep("bob", sound) for _ in range(MOST_UTTERANCES)]
    assert files_in(tmp_path) == 1 + MOST_OF_ONE_VISITOR
    with pytest.raises(MediaRejected):
        utterances.take("bob", mine[-MOST_OF_ONE_VISITOR - 1], tmp_path)
    for visitor, key in [("ann", other), *(("bob", key) for key in mine[-MOST_OF_ONE_VISITOR:])]:
        utterances.take(visitor, key, tmp_path)


async def test_all_visitors_together_have_a_bound(tmp_path: Path) -> None:
    utterances, sound = Utterances(tmp_path, LIMITS), makers.wav(makers.sine(0.1))
    keys = [await utterances.keep(f"visitor {number}", sound) for number in range(MOST_UTTERANCES + 1)]
    assert files_in(tmp_path) == MOST_UTTERANCES
    with pytest.raises(MediaRejected):
        utterances.take("visitor 0", keys[0], tmp_path)
    utterances.take("visitor 1", keys[1], tmp_path)
