"""A reply while it is made: independent of who watches, exact when stopped, honest when something breaks."""

from __future__ import annotations

import asyncio
import wave
from pathlib import Path

import pytest

from omni_app.conversation import Message, ReplyOptions
from omni_app.ui.live import LiveReply, Replies
from tests.scripted import RATE, ScriptedEngine, tone

pytestmark = pytest.mark.anyio
SPEAKING = ReplyOptions()


async def started(folder: Path, text: str, engine: ScriptedEngine | None = None) -> LiveReply:
    reply = LiveReply("visitor", "conversation", folder / "answer.wav")
    engine = engine or ScriptedEngine(word_seconds=0.01)
    reply.start(engine.reply, [Message.of("user", text)], SPEAKING, lambda _: None)
    return reply


async def ended(reply: LiveReply) -> LiveReply:
    async with asyncio.timeout(10):
        while not reply.done:
            await reply.wait(1)
    return reply


async def heard(reply: LiveReply) -> bytes:
    return b"".join([piece.pcm async for piece in reply.speech()])


async def test_text_speech_and_file_hold_the_same_answer(tmp_path: Path) -> None:
    reply = await started(tmp_path, "a b c")
    assert await heard(reply) == tone(0.8)
    assert (await ended(reply)).text == "echo: a b c "
    with wave.open(str(tmp_path / "answer.wav")) as wav:
        assert (wav.getframerate(), wav.readframes(10**9)) == (RATE, tone(0.8))
    assert reply.figures


async def test_late_and_second_listeners_hear_it_from_the_start(tmp_path: Path) -> None:
    reply = await ended(await started(tmp_path, "a b c"))
    assert await heard(reply) == await heard(reply) == tone(0.8)


async def test_stop_lets_go_of_the_engine_and_of_every_listener(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    reply = await started(tmp_path, "slow long story", engine)
    listener = asyncio.create_task(heard(reply))
    await reply.wait(5)
    await reply.stop()
    assert engine.working == 0
    assert reply.done
    assert len(await asyncio.wait_for(listener, 1)) <= len(tone(0.4))
    await reply.stop()


async def test_failure_in_the_middle_keeps_what_was_said(tmp_path: Path) -> None:
    reply = await ended(await started(tmp_path, "please fail"))
    assert reply.text == "echo: please "
    assert "stopped in the middle" in reply.note
    assert reply.has_speech
    assert (tmp_path / "answer.wav").exists()


async def test_full_disk_costs_the_file_and_never_the_answer(tmp_path: Path) -> None:
    (tmp_path / "media").write_text("a file where the folder should be")
    reply = await started(tmp_path / "media", "a b c")
    assert await heard(reply) == tone(0.8)
    await ended(reply)
    assert reply.text == "echo: a b c "
    assert "was not kept" in reply.note
    assert not reply.has_speech


async def test_a_run_belongs_to_its_visitor_and_its_conversation(tmp_path: Path) -> None:
    replies, reply = Replies(), await started(tmp_path, "slow long story")
    replies.add(reply)
    assert replies.heard_by("visitor", reply.run) is reply
    assert replies.heard_by("somebody else", reply.run) is None
    assert replies.heard_by("", reply.run) is None
    assert replies.current("visitor", "conversation") is reply
    await reply.stop()
    replies.release(reply)
    assert replies.current("visitor", "conversation") is None
    assert replies.heard_by("visitor", reply.run) is reply


async def test_stopped_before_its_first_step_it_still_ends(tmp_path: Path) -> None:
    reply = await started(tmp_path, "a b c")
    await reply.stop()
    assert reply.done
    assert reply.text == ""
    assert await heard(reply) == b""


async def test_what_was_said_to_a_visitor_who_was_away_can_still_be_heard_but_not_what_was_stopped(
    tmp_path: Path,
) -> None:
    replies, said = Replies(), [await started(tmp_path, "slow long story") for _ in range(2)]
    for reply in said:
        replies.add(reply)
        while not reply.text:
            await reply.wait(5)
        assert replies.latest("visitor", "conversation") == reply.run
    said[0].abandon()
    await ended(said[0])
    assert len(await heard(said[0])) >= len(tone(0.2))
    await said[1].stop()
    assert await heard(said[1]) == b""
    assert replies.latest("visitor", "conversation") == ""
    assert replies.latest("somebody", "conversation") == ""
