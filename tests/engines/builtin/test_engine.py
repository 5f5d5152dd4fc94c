"""The engine's composition, with small stand-ins for the models."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from omni_app.conversation import (
    AudioDelta,
    Event,
    Heard,
    Message,
    Part,
    ReplyEnd,
    ReplyOptions,
    ReplyStats,
    TextDelta,
)
from omni_app.engines.builtin.outbox import Outbox
from omni_app.errors import AssetUnavailable, BadRequest, EngineFailed, EngineUnavailable, MediaRejected
from omni_app.media import video

if TYPE_CHECKING:
    from .conftest import House

pytestmark = pytest.mark.anyio


async def collect(events: AsyncIterator[Event], into: list[Event] | None = None) -> list[Event]:
    into = [] if into is None else into
    async for event in events:
        into.append(event)
    return into


def text_of(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def spoken(events: Sequence[Event]) -> list[str]:
    return [event.pcm.decode() for event in events if isinstance(event, AudioDelta)]


async def test_text_and_speech_and_counts_and_the_end(house: House) -> None:
    events = await collect(house.say("one two three"))
    assert text_of(events) == "one two three "
    assert spoken(events) == ["one", "two", "three"]
    assert [event for event in events if isinstance(event, ReplyStats)] == [ReplyStats(3, 3)]
    assert events[-1] == ReplyEnd("stop")
    assert house.at_rest()


async def test_speech_comes_while_the_text_is_still_being_written(house: House) -> None:
    house.mind.gate = threading.Semaphore(1)
    async with aclosing(house.say("one two")) as events:
        first = [await anext(events), await anext(events)]
        assert [type(event) for event in first] == [TextDelta, AudioDelta]
        house.mind.gate.release()
        assert isinstance(await anext(events), TextDelta)


async def test_a_cut_answer_says_so(house: House) -> None:
    house.mind.reason = "length"
    events = await collect(house.say("one two three", max_tokens=2))
    assert text_of(events) == "one two "
    assert events[-1] == ReplyEnd("length")


async def test_without_speech_nothing_is_spoken(house: House) -> None:
    assert spoken(await collect(house.say("one", speech=False))) == []


@pytest.mark.parametrize("way", ["aclose", "cancel"])
async def test_stopping_ends_all_work(house: House, way: str) -> None:
    house.mind.gate = threading.Semaphore(2)
    arrived = asyncio.Event()

    async def take() -> None:
        async with aclosing(house.say("one two three four")) as events:
            async for event in events:
                if isinstance(event, AudioDelta):
                    arrived.set()
                    if way == "aclose":
                        break

    task = asyncio.create_task(take())
    await arrived.wait()
    if way == "cancel":
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.wait([task])
    assert house.at_rest()


async def test_a_slow_taker_holds_the_work_back(house: House) -> None:
    async with aclosing(house.say("word " * 5000, speech=False, max_tokens=5000)) as events:
        await anext(events)
        await asyncio.sleep(0)
        assert house.mind.thinking == 1
    assert house.at_rest()


async def test_replies_do_not_mix(house: House) -> None:
    said = [" ".join(f"{name}{number}" for number in range(40)) for name in "abcdefgh"]
    replies = await asyncio.gather(*(collect(house.say(text)) for text in said))
    assert [text_of(events).strip() for events in replies] == said
    assert [" ".join(spoken(events)) for events in replies] == said


async def test_the_language_model_failing_keeps_what_was_said(house: House) -> None:
    house.mind.error = EngineFailed("The language model broke off.")
    events: list[Event] = []
    with pytest.raises(EngineFailed, match="broke off"):
        await collect(house.say("one two"), events)
    assert text_of(events) == "one two "
    assert house.at_rest()


async def test_an_unforeseen_failure_is_told_in_our_words(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.mind.error = ZeroDivisionError("secret detail")
    with pytest.raises(EngineFailed, match="please ask again") as caught:
        await collect(house.say("one"))
    assert "secret detail" not in str(caught.value)
    assert "secret detail" in caplog.text


@pytest.mark.parametrize("error", [EngineFailed("The voice broke."), ZeroDivisionError("oops")])
async def test_the_voice_failing_leaves_the_text_whole(house: House, error: Exception) -> None:
    house.voice.error, house.voice.fails_after = error, 1
    events = await collect(house.say("one two three"))
    assert text_of(events).startswith("one two three ")
    assert "(Not all of this could be spoken: " in text_of(events)
    assert "oops" not in text_of(events)
    assert spoken(events) == ["one"]
    assert events[-1] == ReplyEnd("stop")


async def test_a_spoken_message_is_heard_and_answered(house: House, wav: Part) -> None:
    events = await collect(house.say("", wav))
    assert events[0] == Heard("what time is it")
    assert text_of(events) == "what time is it "


async def test_a_recording_is_heard_once_and_remembered_in_the_history(house: House, wav: Part) -> None:
    await collect(house.say("", wav))
    messages = [Message.of("user", "", wav), Message.of("assistant", "Noon."), Message.of("user", "Sure?")]
    await collect(house.engine.reply(messages, ReplyOptions()))
    assert [turn["content"] for turn in house.mind.asked[-1][1:]] == ["what time is it", "Noon.", "Sure?"]
    assert len(house.ears.heard) == 1


async def test_media_never_heard_before_get_a_word_in_the_history(house: House, wav: Part, picture: Part) -> None:
    messages = [Message.of("user", "Look", wav, picture), Message.of("assistant", "Yes."), Message.of("user", "And?")]
    await collect(house.engine.reply(messages, ReplyOptions()))
    assert house.mind.asked[-1][1]["content"] == "Look\n(a spoken message)\n(a picture)"
    assert house.ears.heard == []


async def test_a_recording_beside_typed_text_is_its_subject(house: House, wav: Part) -> None:
    await collect(house.say("Shorten this.", wav))
    assert house.mind.asked[-1][-1]["content"] == "A recording says: “what time is it”\nShorten this."


async def test_a_recording_without_words_is_not_answered_by_guessing(house: House, wav: Part) -> None:
    house.ears.transcript = ""
    events = await collect(house.say("", wav))
    assert "I heard no words" in text_of(events)
    assert house.mind.asked == []
    assert not any(isinstance(event, Heard) for event in events)


async def test_the_ears_failing_is_told(house: House, wav: Part) -> None:
    house.ears.error = EngineFailed("The listening model failed on this sound.")
    with pytest.raises(EngineFailed, match="listening model"):
        await collect(house.say("", wav))


async def test_a_picture_is_described_without_the_language_model(house: House, picture: Part) -> None:
    events = await collect(house.say("Who is this?", picture))
    assert "64 by 48 pixels" in text_of(events)
    assert "“OPEN”" in text_of(events)
    assert "Qwen3-Omni can" in text_of(events)
    assert house.mind.asked == []
    assert " ".join(spoken(events)) == " ".join(text_of(events).split())


@pytest.mark.parametrize("decoding", ["sound", "frames"])
async def test_a_stop_is_seen_while_a_clip_is_decoded(
    house: House, picture: Part, monkeypatch: pytest.MonkeyPatch, decoding: str
) -> None:
    begun = threading.Event()

    def long(*given: object) -> list[object]:
        while not given[-1]():  # type: ignore[operator]
            begun.set()
            time.sleep(0.001)
        return []

    monkeypatch.setattr(video, "sound", lambda *_: None)
    monkeypatch.setattr(video, decoding, long)
    answering = asyncio.create_task(collect(house.say("", replace(picture, kind="video"))))
    assert await asyncio.to_thread(begun.wait, 10)
    answering.cancel()
    await asyncio.wait({answering}, timeout=10)
    assert answering.cancelled()
    assert house.at_rest()


async def test_several_pictures_are_numbered(house: House, picture: Part) -> None:
    text = text_of(await collect(house.say("", picture, picture)))
    assert text.startswith("1. The text")
    assert "\n\n2. The text" in text


async def test_a_recording_beside_a_picture_and_typed_words_is_told_in_its_place(
    house: House, wav: Part, picture: Part
) -> None:
    text = text_of(await collect(house.say("What do you see and hear?", picture, wav)))
    assert text.startswith("1. The text")
    assert "\n\n2. In the recording I hear: “what time is it”.\n\nI cannot tell" in text


async def test_a_recording_without_words_beside_a_picture_is_told_too(house: House, wav: Part, picture: Part) -> None:
    house.ears.transcript = ""
    text = text_of(await collect(house.say("What do you hear?", wav, picture)))
    assert text.startswith("1. I hear no words in the recording.\n\n2. The text")


async def test_a_spoken_question_about_a_picture_is_not_repeated(house: House, wav: Part, picture: Part) -> None:
    text = text_of(await collect(house.say("", picture, wav)))
    assert text.startswith("The text")
    assert "what time is it" not in text


@pytest.mark.parametrize("kind", ["image", "audio", "video"])
async def test_a_file_that_is_gone_is_told(house: House, tmp_path: Path, kind: str) -> None:
    with pytest.raises(MediaRejected, match=r"holiday\.bin can no longer be read; please send it again"):
        await collect(house.say("", Part(kind, path=tmp_path / "gone", name="holiday.bin")))  # type: ignore[arg-type]


async def test_a_system_message_replaces_ours(house: House) -> None:
    await collect(house.say("hi"))
    assert "assistant" in house.mind.asked[-1][0]["content"]
    messages = [Message.of("system", "Be a pirate."), Message.of("user", "hi")]
    await collect(house.engine.reply(messages, ReplyOptions()))
    assert house.mind.asked[-1] == [
        {"role": "system", "content": "Be a pirate."},
        {"role": "user", "content": "hi"},
    ]


@pytest.mark.parametrize(
    ("messages", "options", "told"),
    [
        ([Message.of("user", "hi")], ReplyOptions(voice="carl"), "anna, otto"),
        ([Message.of("user", "hi")], ReplyOptions(max_tokens=0), "at least 1"),
        ([Message.of("user", "hi")], ReplyOptions(temperature=3.0), "between 0 and 2"),
        ([Message.of("user", " ")], ReplyOptions(), "empty"),
        ([Message.of("user", "hi"), Message.of("assistant", "ho")], ReplyOptions(), "from the user"),
        ([], ReplyOptions(), "from the user"),
    ],
)
async def test_bad_requests_are_refused(
    house: House, messages: list[Message], options: ReplyOptions, told: str
) -> None:
    with pytest.raises(BadRequest, match=told):
        await collect(house.engine.reply(messages, options))
    assert house.at_rest()


async def test_a_voice_that_cannot_be_had_is_only_a_limit(new_house: House) -> None:
    house = new_house
    house.voice.load_error = AssetUnavailable("The voices could not be fetched.")
    await house.engine.start()
    status = house.engine.status()
    assert (status.ready, status.speaks, status.voices) == (True, False, ())
    assert "The voices could not be fetched." in status.why
    events = await collect(house.say("one"))
    assert text_of(events) == "one "
    assert spoken(events) == []
    await house.engine.close()


async def test_status_before_at_and_after_the_start(house: House) -> None:
    status = house.engine.status()
    assert (status.name, status.model, status.ready, status.voices) == ("builtin", "fake", True, ("anna", "otto"))
    assert "Otto speaks." in status.why
    await house.engine.close()
    await house.engine.close()
    assert house.mind.closed
    with pytest.raises(EngineUnavailable, match="closed"):
        await collect(house.say("hi"))


async def test_an_engine_that_never_started_refuses_and_closes(new_house: House) -> None:
    with pytest.raises(EngineUnavailable, match="not loaded"):
        await collect(new_house.say("hi"))
    await new_house.engine.close()


async def test_closing_the_engine_ends_replies(house: House) -> None:
    house.mind.gate = threading.Semaphore(1)
    events = house.say("one two three")
    await anext(events)
    await house.engine.close()
    assert not [event async for event in events if isinstance(event, ReplyEnd)]
    assert house.at_rest()


async def test_the_outbox_keeps_few_events_and_lets_go_when_cancelled() -> None:
    outbox = Outbox()
    put: list[int] = []

    def fill() -> None:
        for number in range(10_000):
            outbox.put(TextDelta(str(number)))
            put.append(number)

    thread = threading.Thread(target=fill)
    thread.start()
    first = await anext(outbox.events())
    assert first == TextDelta("0")
    assert len(put) < 200
    outbox.cancelled.set()
    await asyncio.to_thread(thread.join)
    assert len(put) == 10_000


HEAVY = {"onnxruntime", "xllamacpp", "onnx", "av", "cv2", "rapidocr", "moonshine_voice", "kokoro_onnx", "torch"}


def test_choosing_this_engine_loads_no_model_library() -> None:
    code = (
        "import sys\n"
        "from omni_app.engines import SPECS\n"
        "from omni_app.settings import Settings\n"
        "SPECS['builtin'].create(Settings())\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY & set(done.stdout.split()) == set()
