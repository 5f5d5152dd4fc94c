"""Stand-ins for the models of the builtin engine, and an engine made of them."""

from __future__ import annotations

import threading
import wave
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image

from omni_app.conversation import AudioDelta, Event, Message, Part, ReplyOptions
from omni_app.engines.builtin import engine as engine_module
from omni_app.engines.builtin.engine import BuiltinEngine
from omni_app.engines.builtin.generation import Thought, Turn
from omni_app.engines.builtin.look import Line, Sight
from omni_app.engines.builtin.parts import Parts
from omni_app.settings import Settings

Cancelled = Callable[[], bool]


class FakeMind:
    """Repeats the last turn word by word. `gate` lets one word through per release, when set."""

    def __init__(self) -> None:
        self.asked: list[list[Turn]] = []
        self.gate: threading.Semaphore | None = None
        self.error: Exception | None = None
        self.reason = "stop"
        self.thinking = 0
        self.closed = False

    def load(self, path: Path) -> None: ...

    def think(
        self,
        messages: Sequence[Turn],
        say: Callable[[str], None],
        *,
        max_tokens: int,
        cancelled: Cancelled,
        **_: object,
    ) -> Thought:
        self.asked.append(list(messages))
        self.thinking += 1
        try:
            words = messages[-1]["content"].split()[:max_tokens]
            for word in words:
                while self.gate is not None and not self.gate.acquire(timeout=0.01):
                    if cancelled():
                        return Thought("cancelled", 3, None)
                say(word + " ")
            if self.error is not None:
                raise self.error
            return Thought(self.reason, 3, len(words))  # type: ignore[arg-type]
        finally:
            self.thinking -= 1

    def close(self) -> None:
        self.closed = True


class FakeSpeech:
    """One AudioDelta per word, as soon as the word is there; its PCM holds the word."""

    def __init__(self, voice: FakeVoice, cancelled: Cancelled) -> None:
        self.voice, self.cancelled = voice, cancelled
        self.text, self.finished = "", False
        self.changed = threading.Condition()

    def feed(self, delta: str) -> None:
        with self.changed:
            self.text += delta
            self.changed.notify_all()

    def finish(self) -> None:
        with self.changed:
            self.finished = True
            self.changed.notify_all()

    def audio(self) -> Iterator[AudioDelta]:
        self.voice.speaking += 1
        try:
            said = 0
            while not self.cancelled():
                with self.changed:
                    if said == len(self.text.split()):
                        if self.finished:
                            return
                        self.changed.wait(0.01)
                        continue
                if self.voice.error is not None and said == self.voice.fails_after:
                    raise self.voice.error
                yield AudioDelta(self.text.split()[said].encode(), 24_000)
                said += 1
        finally:
            self.voice.speaking -= 1


class FakeVoice:
    voices = ("anna", "otto")
    reason = "Otto speaks."

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.fails_after = 0
        self.load_error: Exception | None = None
        self.speaking = 0

    def load(self, progress: Callable[[str], None]) -> None:
        if self.load_error is not None:
            raise self.load_error

    def utterance(self, voice: str | None, cancelled: Cancelled) -> FakeSpeech:
        return FakeSpeech(self, cancelled)

    def close(self) -> None: ...


class FakeEars:
    def __init__(self) -> None:
        self.heard: list[Path] = []
        self.transcript = "what time is it"
        self.error: Exception | None = None

    def transcribe(self, wav: Path, cancelled: Cancelled) -> str:
        self.heard.append(wav)
        if self.error is not None:
            raise self.error
        return self.transcript

    def close(self) -> None: ...


class FakeEyes:
    def look(self, image: Image.Image) -> Sight:
        return Sight(image.size, ("red",), (Line("OPEN", 0.99),), (("cat", 0.9),))


class House:
    """An engine of stand-ins, started."""

    def __init__(self) -> None:
        self.mind, self.voice, self.ears, self.eyes = FakeMind(), FakeVoice(), FakeEars(), FakeEyes()
        parts = Parts(lambda: self.mind, lambda: self.voice, lambda: self.ears, lambda _: self.eyes)
        self.engine = BuiltinEngine(Settings(), parts)

    def say(self, text: str, *media: Part, speech: bool = True, **options: object) -> AsyncGenerator[Event, None]:
        return self.engine.reply([Message.of("user", text, *media)], ReplyOptions(speech=speech, **options))  # type: ignore[arg-type]

    def at_rest(self) -> bool:
        names = [thread.name for thread in threading.enumerate()]
        return self.mind.thinking == 0 and self.voice.speaking == 0 and "builtin-speech" not in names


@pytest.fixture
def new_house(monkeypatch: pytest.MonkeyPatch) -> House:
    """Not started."""
    monkeypatch.setattr(engine_module, "language_model", lambda settings, progress: Path("fake.gguf"))
    return House()


@pytest.fixture
async def house(new_house: House) -> AsyncIterator[House]:
    house = new_house
    await house.engine.start()
    yield house
    await house.engine.close()


@pytest.fixture
def wav(tmp_path: Path) -> Part:
    path = tmp_path / "said.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(3200))
    return Part("audio", path=path, name="said.wav")


@pytest.fixture
def picture(tmp_path: Path) -> Part:
    path = tmp_path / "picture.png"
    Image.new("RGB", (64, 48), "red").save(path)
    return Part("image", path=path, name="picture.png")
