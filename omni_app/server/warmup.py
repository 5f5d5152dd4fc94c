"""The first requests to a server that has just started: they compile what the start left out, and prove the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from omni_app.conversation import AudioDelta, Event, Message, Part, ReplyOptions, TextDelta
from omni_app.engines.base import Engine
from omni_app.errors import EngineFailed
from omni_app.scratch import scratch

TEXT_TOKENS = 16
SPEECH_FRAMES = 100
"""Most codec frames of an answer; a talker that never stops would speak for minutes."""
SIDE_PX = 64
SOUND_RATE_HZ = 16_000
QUESTION = "Say hello."
COUNTING = "Count from one to twenty."
"""Spoken for some seconds, so that answers that begin together are made together."""
CROWDS = (2, 16)
"""Triton compiles a kernel of its own for the number 1 and for multiples of 16; 2 stands for all others. The first 16
users would otherwise wait a second for the talker's sampling kernels."""
CROWD_S = 180.0
"""Longest wait for a crowd: its kernels are compiled at first use if not here."""


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    message: Message
    speech: bool


async def warm_up(
    engine: Engine, *, speech: bool, users: int = 1, crowd_s: float = CROWD_S
) -> AsyncGenerator[str, None]:
    """Ask one short text, picture and sound question, then let 2 and 16 users ask at once as far as so many may, and
    name each before it is asked.

    `engine` must have been started. Raises what engines raise, and EngineFailed for an answer that holds nothing. A
    crowd that is not answered in `crowd_s` seconds is left to itself.
    """
    with scratch() as folder:
        for step in _steps(folder, speech):
            yield step.name
            await _ask(engine, step)
    counting = Step("counting", Message.of("user", COUNTING), speech)
    for crowd in (size for size in CROWDS if size <= users):
        yield f"{crowd} users at once"
        try:
            async with asyncio.timeout(crowd_s):
                await _ask_together(engine, counting, crowd)
        except TimeoutError:
            yield f"{crowd} users at once took longer than {crowd_s:.0f} s, so that is left out"
            return


def _steps(folder: Path, speech: bool) -> list[Step]:
    picture = Part("image", path=_picture(folder / "grey.png"), mime="image/png", width=SIDE_PX, height=SIDE_PX)
    sound = Part("audio", path=_sound(folder / "quiet.wav"), mime="audio/wav", seconds=1.0)
    return [
        Step("text and speech" if speech else "text", Message.of("user", QUESTION), speech),
        Step("picture", Message.of("user", QUESTION, picture), False),
        Step("sound", Message.of("user", QUESTION, sound), False),
    ]


async def _ask_together(engine: Engine, step: Step, crowd: int) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(crowd):
                group.create_task(_ask(engine, step))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def _ask(engine: Engine, step: Step) -> None:
    capped = {"sampling_params_list": [{}, {"max_tokens": SPEECH_FRAMES}, {}]} if step.speech else {}
    options = ReplyOptions(speech=step.speech, max_tokens=TEXT_TOKENS, extra=capped)
    text = sound = 0
    events: AsyncGenerator[Event, None] = engine.reply([step.message], options)
    async with aclosing(events) as stream:
        async for event in stream:
            text += len(event.text) if isinstance(event, TextDelta) else 0
            sound += len(event.pcm) if isinstance(event, AudioDelta) else 0
    if not text or (step.speech and not sound):
        missing = "no text" if not text else "text, but no speech"
        raise EngineFailed(f"The server's first answer ({step.name}) held {missing}.")


def _picture(path: Path) -> Path:
    from PIL import Image

    Image.linear_gradient("L").resize((SIDE_PX, SIDE_PX)).convert("RGB").save(path)
    return path


def _sound(path: Path) -> Path:
    from omni_app.media.audio import write_wav

    write_wav(path, bytes(2 * SOUND_RATE_HZ), SOUND_RATE_HZ)
    return path
