"""The whole engine on its real models: typed, spoken and shown questions, several at once, and stopping."""

from __future__ import annotations

import asyncio
import threading
import wave
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from omni_app.conversation import AudioDelta, Event, Heard, Message, Part, ReplyEnd, ReplyOptions, ReplyStats, TextDelta
from omni_app.engines.builtin.assets import EFFICIENTNET, IMAGENET_NAMES, RAPIDOCR, fetch, packaged
from omni_app.engines.builtin.engine import BuiltinEngine
from omni_app.engines.builtin.look import Looker
from omni_app.engines.builtin.speak import Speaker
from omni_app.settings import Settings

pytestmark = [pytest.mark.models, pytest.mark.anyio]

SETTINGS = Settings(builtin_speech="espeak")
"""eSpeak, so that a busy test machine spends its time on what is tested here."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def engine(anyio_backend: str) -> AsyncIterator[BuiltinEngine]:
    engine = BuiltinEngine(SETTINGS)
    await engine.start()
    yield engine
    await engine.close()


async def answer(engine: BuiltinEngine, text: str, *media: Part, **options: object) -> list[Event]:
    wishes = ReplyOptions(seed=1, temperature=0.0, **options)  # type: ignore[arg-type]
    return [event async for event in engine.reply([Message.of("user", text, *media)], wishes)]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def speech_seconds(events: list[Event]) -> float:
    return sum(event.seconds for event in events if isinstance(event, AudioDelta))


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> Part:
    """A question spoken by our own voice, as 16 kHz WAV."""
    samples = Speaker(SETTINGS).synthesize("What is the capital of France?", "espeak-en-us")
    places = np.arange(0, len(samples), 24_000 / 16_000)
    path = tmp_path_factory.mktemp("said") / "question.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(np.interp(places, np.arange(len(samples)), samples).astype("<i2").tobytes())
    return Part("audio", path=path)


@pytest.fixture(scope="module")
def sign(tmp_path_factory: pytest.TempPathFactory) -> Part:
    image = Image.new("RGB", (640, 300), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=56)
    draw.text((60, 60), "Platform 9", fill="black", font=font)
    draw.text((60, 160), "Mind the gap", fill="black", font=font)
    path = tmp_path_factory.mktemp("seen") / "sign.png"
    image.save(path)
    return Part("image", path=path)


@pytest.fixture(scope="module")
def clip(question: Part, sign: Part, tmp_path_factory: pytest.TempPathFactory) -> Part:
    """Three seconds of the sign, with the spoken question as its sound."""
    import av

    assert question.path is not None
    assert sign.path is not None
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w") as out, av.open(str(question.path)) as sound:
        video, audio = out.add_stream("mpeg4", rate=10), out.add_stream("aac", rate=16_000)
        video.width, video.height, video.pix_fmt = 640, 300, "yuv420p"
        picture = av.VideoFrame.from_image(Image.open(sign.path))
        for _ in range(30):
            out.mux(video.encode(picture))
        out.mux(video.encode(None))
        for frame in sound.decode(audio=0):
            out.mux(audio.encode(frame))
        out.mux(audio.encode(None))
    return Part("video", path=path, seconds=3.0, has_sound=True)


async def test_a_typed_question_is_answered_in_text_and_speech(engine: BuiltinEngine) -> None:
    events = await answer(engine, "What is the capital of Japan?")
    assert "Tokyo" in text_of(events)
    assert speech_seconds(events) > 1
    assert [event.completion_tokens or 0 for event in events if isinstance(event, ReplyStats)] > [3]
    assert events[-1] == ReplyEnd("stop")


async def test_a_spoken_question_is_heard_and_answered(engine: BuiltinEngine, question: Part) -> None:
    events = await answer(engine, "", question)
    assert isinstance(events[0], Heard)
    assert "capital" in events[0].text
    assert "France" in events[0].text
    assert "Paris" in text_of(events)


async def test_the_text_in_a_picture_is_read(engine: BuiltinEngine, sign: Part) -> None:
    text = text_of(await answer(engine, "What does it say?", sign, speech=False))
    assert "Platform 9" in text
    assert "Mind the gap" in text
    assert "mostly white" in text
    assert "Qwen3-Omni can" in text


async def test_a_picture_does_not_spoil_the_answers_after_it(engine: BuiltinEngine, sign: Part) -> None:
    wishes = ReplyOptions(speech=False, seed=1, temperature=0.0)
    messages: list[Message] = []
    later = [Message.of("user", words) for words in ("What is the capital of Italy?", "Name three fruits.")]
    for question in (Message.of("user", "What does the sign say?", sign), *later):
        messages.append(question)
        events = [event async for event in engine.reply(messages, wishes)]
        assert events[-1] == ReplyEnd("stop")
        messages.append(Message.of("assistant", text_of(events)))
    after = " ".join(message.text for message in messages[2:])
    assert not any(template in after for template in ("not sure", "I can read", "Platform 9"))


async def test_a_clip_is_watched_and_heard(engine: BuiltinEngine, clip: Part) -> None:
    events = await answer(engine, "", clip, speech=False)
    assert isinstance(events[0], Heard)
    assert "capital of France" in events[0].text
    text = text_of(events)
    assert "3 seconds long" in text
    assert "Platform 9" in text
    assert f"“{events[0].text}”" in text


async def test_four_at_once_do_not_mix(engine: BuiltinEngine, question: Part, sign: Part) -> None:
    typed, spoken, shown, other = await asyncio.gather(
        answer(engine, "What is the capital of Japan?"),
        answer(engine, "", question),
        answer(engine, "", sign),
        answer(engine, "What is the capital of Italy?", speech=False),
    )
    assert "Tokyo" in text_of(typed)
    assert "Paris" in text_of(spoken)
    assert "Platform 9" in text_of(shown)
    assert "Rome" in text_of(other)
    assert [speech_seconds(events) > 0 for events in (typed, spoken, shown, other)] == [True, True, True, False]


async def test_a_stop_leaves_no_work_behind(engine: BuiltinEngine) -> None:
    async with aclosing(
        engine.reply([Message.of("user", "Write a long story about a dragon.")], ReplyOptions())
    ) as events:
        async for event in events:
            if isinstance(event, AudioDelta):
                break
    assert not [thread for thread in threading.enumerate() if thread.name == "builtin-speech"]
    assert engine._mind._thinking == 0  # type: ignore[attr-defined]


async def test_status_tells_what_it_is(engine: BuiltinEngine) -> None:
    status = engine.status()
    assert status.ready
    assert status.model.startswith("SmolLM2")
    assert status.modalities == {"text", "image", "audio", "video"}
    assert "espeak-en-us" in status.voices


@pytest.fixture(scope="module")
def looker() -> Looker:
    checkpoint, names = (fetch(asset, SETTINGS.cache_dir) for asset in (EFFICIENTNET, IMAGENET_NAMES))
    return Looker(checkpoint, names, packaged(RAPIDOCR))


@pytest.fixture(scope="module")
def keyboard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn chessboard-like crossword: black and white squares."""
    image = Image.new("RGB", (400, 400), "white")
    draw = ImageDraw.Draw(image)
    for row in range(8):
        for column in range(row % 2, 8, 2):
            draw.rectangle((column * 50, row * 50, column * 50 + 49, row * 50 + 49), fill="black")
    path = tmp_path_factory.mktemp("board") / "board.png"
    image.save(path)
    return path


def test_the_classifier_is_steady_and_sees_squares(looker: Looker, keyboard: Path) -> None:
    first, again = (looker.look(Image.open(keyboard)) for _ in range(2))
    assert first == again
    assert first.things[0][0] == "crossword"
    assert sum(probability for _, probability in first.things) <= 1


def test_an_empty_picture_is_not_guessed_at(looker: Looker) -> None:
    from omni_app.engines.builtin.describe import describe_picture

    sight = looker.look(Image.new("RGB", (300, 200), (200, 30, 30)))
    assert sight.lines == ()
    assert sight.colours == ("red",)
    assert "It looks most like" not in describe_picture(sight)


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (3000, 20), (2500, 2500)])
def test_pictures_of_every_shape_are_looked_at(looker: Looker, size: tuple[int, int]) -> None:
    assert looker.look(Image.new("RGB", size, "white")).size == size
