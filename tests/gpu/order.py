"""What is asked of a server under test, and of whom; shared by the steps."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from omni_app.conversation import AudioDelta, Message, ReplyOptions, ReplyStats, TextDelta
from omni_app.engines.vllm_omni import VllmOmniEngine
from omni_app.meter import ReplyMeter
from omni_app.server import gpu_memory
from omni_app.server.state import ServerFolder
from omni_app.settings import Settings

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks/gpu"))  # scripts that a bare host can run; they import each other by name

from omni_http import Server  # noqa: E402

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Order:
    """What to ask of whom."""

    endpoint: str
    data_dir: Path
    """Of the server, if it was started here: tells its processes' memory and what it may read."""
    text_tokens: int
    frames: int
    users: tuple[int, ...]
    rounds: int
    seconds: float
    """How long `soak` lasts."""
    sound: Path
    """Where `speak` leaves what was said."""
    soak_users: int = 0
    """As many as the largest of `users` when 0."""

    def settings(self, **fields: Any) -> Settings:
        return Settings(endpoint=self.endpoint, data_dir=self.data_dir, silence_seconds=120, **fields)

    def options(self, speech: bool, voice: str | None = None) -> ReplyOptions:
        caps: list[Json] = [{}, {"max_tokens": self.frames}, {}]
        return ReplyOptions(speech, voice, max_tokens=self.text_tokens, extra={"sampling_params_list": caps})

    def server(self) -> Server:
        url = httpx.URL(self.endpoint)
        model = httpx.get(f"{self.endpoint}/v1/models", trust_env=False).json()["data"][0]["id"]
        return Server(url.host, url.port or 80, model)

    def memory(self) -> dict[str, float]:
        """GiB on the GPU by stage, where that can be told."""
        return gpu_memory.by_stage(ServerFolder(self.data_dir).read())


@dataclass(frozen=True, slots=True)
class Said:
    text: str
    pcm: bytes
    rate: int
    prompt_tokens: int | None
    figures: Json


@asynccontextmanager
async def engine_of(settings: Settings) -> AsyncGenerator[VllmOmniEngine, None]:
    engine = VllmOmniEngine(settings)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def answer(engine: VllmOmniEngine, messages: Sequence[Message], options: ReplyOptions) -> Said:
    meter, text, pcm, rate, prompt = ReplyMeter(), "", b"", 24_000, None
    async with aclosing(engine.reply(messages, options)) as events:
        async for event in events:
            meter.observe(event)
            if isinstance(event, TextDelta):
                text += event.text
            elif isinstance(event, AudioDelta):
                pcm, rate = pcm + event.pcm, event.sample_rate
            elif isinstance(event, ReplyStats):
                prompt = event.prompt_tokens
    return Said(text, pcm, rate, prompt, asdict(meter.figures()))


def row(name: object, said: Said) -> str:
    """One line of a table: first text and sound in ms, seconds of speech, real-time factor."""
    cells = [
        "-" if value is None else f"{value * scale:.{digits}f}"
        for value, scale, digits in (
            (said.figures["first_text_s"], 1000, 0), (said.figures["first_sound_s"], 1000, 0),
            (said.figures["speech_s"], 1, 1), (said.figures["real_time_factor"], 1, 3),
        )
    ]  # fmt: skip
    return f"{name!s:34}" + "".join(f"{cell:>12}" for cell in cells)


HEAD = f"{'':34}{'text ms':>12}{'sound ms':>12}{'speech s':>12}{'RTF':>12}"
