"""How fast an endpoint answers: first text, first sound, tokens/s, real-time factor and gaps, by number of users."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx

from omni_app import vllm_bench
from omni_app.conversation import AudioDelta, Message, ReplyOptions
from omni_app.engines.base import Engine
from omni_app.engines.endpoint import EndpointEngine
from omni_app.errors import BadRequest, OmniError
from omni_app.meter import ReplyFigures, ReplyMeter
from omni_app.scrape import Counts, ServerFigures, between, scrape
from omni_app.server import gpu_memory
from omni_app.server.state import ServerFolder, ServerState
from omni_app.settings import LOOPBACK, Settings
from omni_app.versus import Summary
from omni_app.vllm_bench import Errand

TOPICS = (
    "a bicycle stays upright", "bread rises", "a kite flies", "soap cleans", "a magnet works", "rain forms",
    "a sail pulls", "glue sticks", "a clock keeps time", "snow melts", "a drum sounds", "a lens bends light",
    "yeast grows", "a spring stores energy", "ice floats", "a candle burns",
)  # fmt: skip
QUESTIONS = tuple(f"Explain how {topic}, in simple words." for topic in TOPICS)


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the endpoint."""

    users: tuple[int, ...] = (1, 4, 8, 16)
    rounds: int = 2
    """Questions that each user asks, one after the other; all users begin at the same moment."""
    tokens: int = 128
    """Most tokens of an answer."""
    speech: bool = True
    questions: tuple[str, ...] = QUESTIONS
    extra: Mapping[str, object] = field(default_factory=dict)
    """More fields of each request."""


class Playback:
    """A player that starts at once with the first sound, and notes when it had nothing to play."""

    def __init__(self) -> None:
        self._plays_until: float | None = None
        self.gaps: list[float] = []
        """Seconds of each silence inside the speech."""

    def hear(self, at: float, seconds: float) -> None:
        """A piece of speech that long arrived at that time, in seconds on any one clock."""
        if self._plays_until is not None and at > self._plays_until:
            self.gaps.append(at - self._plays_until)
        self._plays_until = max(at, self._plays_until or at) + seconds


@dataclass(frozen=True, slots=True)
class Answer:
    figures: ReplyFigures
    gaps_s: tuple[float, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """The answers given at one number of users."""

    users: int
    wall_s: float
    answers: tuple[Answer, ...]

    @property
    def good(self) -> list[Answer]:
        return [answer for answer in self.answers if not answer.error]

    @property
    def tokens_per_second(self) -> float:
        """Of all users together, prefill and waiting included."""
        return sum(answer.figures.text_tokens for answer in self.good) / self.wall_s if self.wall_s else 0.0

    def values(self, name: str) -> list[float]:
        """One figure of every good answer that has it."""
        return [value for answer in self.good if (value := getattr(answer.figures, name)) is not None]


@dataclass(frozen=True, slots=True)
class Report:
    endpoint: str
    model: str
    load: Load
    first: Answer
    """The very first answer, which is cold when the server was just started."""
    rows: tuple[Row, ...]
    starts_s: Mapping[str, float]
    """From the start of the server to ready, `cold` and `warm`; empty when it was not started from this data folder."""
    memory_gib: Mapping[str, float]
    server: ServerFigures | None
    """What it counted itself; None when it is no vllm-omni server."""
    vllm_bench: Mapping[str, float]
    """Of `vllm bench serve --omni`, if that was asked for."""

    @property
    def summary(self) -> Summary:
        """Of the row with the fewest users; medians."""
        row = min(self.rows, key=lambda one: one.users, default=Row(0, 0.0, ()))

        def median(name: str, scale: float = 1.0) -> float | None:
            values = row.values(name)
            return statistics.median(values) * scale if values else None

        return Summary(
            name=Path(self.model).name, memory_gib=sum(self.memory_gib.values()) or None,
            tokens_per_second=median("tokens_per_second"), first_text_ms=median("first_text_s", 1000),
            first_sound_ms=median("first_sound_s", 1000), real_time_factor=median("real_time_factor"),
        )  # fmt: skip

    def as_json(self) -> str:
        rows = [asdict(row) | {"tokens_per_second": row.tokens_per_second} for row in self.rows]
        return json.dumps({"summary": self.summary.model_dump(), **asdict(self), "rows": rows}, indent=1)


async def measure(
    settings: Settings, load: Load, report: Callable[[str], None] = print, *, with_vllm: bool = False
) -> Report:
    """Measure what `settings.endpoint` serves. Raises BadRequest, and EngineUnavailable when nobody answers there.

    `with_vllm`: let the server's own tool measure it too; raises what `vllm_bench.run` does.
    """
    if not load.questions:
        raise BadRequest("There is no question to ask: the file of prompts holds no line.")
    engine = EndpointEngine(settings)
    await engine.start()
    try:
        model = engine.status().model
        report(f"{model} at {settings.endpoint}")
        first = await _ask(engine, load, 0)
        before = await _counts(settings)
        rows = [await _row(engine, load, users, report) for users in load.users]
        server = between(before, await _counts(settings))
    finally:
        await engine.close()
    state = _state_of(settings)
    memory = await asyncio.to_thread(gpu_memory.by_stage, state)
    own = await _with_vllm(settings, load, model, report) if with_vllm else {}
    return Report(settings.endpoint, model, load, first, tuple(rows), _starts(state), memory, server, own)


async def _counts(settings: Settings) -> Counts:
    return await scrape(settings.endpoint, settings.api_key.get_secret_value())


async def _with_vllm(settings: Settings, load: Load, model: str, report: Callable[[str], None]) -> dict[str, float]:
    report("vllm bench serve --omni")
    errand = Errand(settings.endpoint, model, min(load.users), load.tokens, load.extra, load.speech)
    return await vllm_bench.run(settings.serve_venv, errand, settings.api_key.get_secret_value())


def _starts(state: ServerState) -> dict[str, float]:
    known = {"cold": state.cold_start_s, "warm": state.warm_start_s}
    return {name: seconds for name, seconds in known.items() if seconds is not None}


def _state_of(settings: Settings) -> ServerState:
    """What is known of the server behind the endpoint: something only when it was started from this data folder."""
    state = ServerFolder(settings.data_dir).read()
    return state if state.endpoint and _place(state.endpoint) == _place(settings.endpoint) else ServerState()


def _place(endpoint: str) -> tuple[str, int | None]:
    """What host and port it names, whichever name of this machine it uses."""
    url = httpx.URL(endpoint)
    return (LOOPBACK[0] if url.host in LOOPBACK else url.host), url.port


async def _row(engine: Engine, load: Load, users: int, report: Callable[[str], None]) -> Row:
    began = time.monotonic()
    answers = await asyncio.gather(*(_user(engine, load, number) for number in range(users)))
    row = Row(users, time.monotonic() - began, tuple(answer for one in answers for answer in one))
    report(f"{users} users: {len(row.good)} of {len(row.answers)} answers in {row.wall_s:.1f} s")
    return row


async def _user(engine: Engine, load: Load, number: int) -> list[Answer]:
    return [await _ask(engine, load, number + turn * 7) for turn in range(load.rounds)]


async def _ask(engine: Engine, load: Load, number: int) -> Answer:
    question = Message.of("user", load.questions[number % len(load.questions)])
    options = ReplyOptions(speech=load.speech, max_tokens=load.tokens, extra=load.extra)
    meter, playback, error = ReplyMeter(), Playback(), ""
    try:
        async with aclosing(engine.reply([question], options)) as events:
            async for event in events:
                meter.observe(event)
                if isinstance(event, AudioDelta) and event.pcm:
                    playback.hear(time.monotonic(), event.seconds)
    except OmniError as refused:
        error = str(refused)
    return Answer(meter.figures(), tuple(playback.gaps), error)


def table(report: Report) -> str:
    """The report in Markdown: a line for each figure, a column for each number of users; median / slowest."""
    lines = [
        _line("", [f"{row.users} user{'s' * (row.users > 1)}" for row in report.rows]),
        _line("---", ["---:"] * len(report.rows)),
        _line("first text (ms)", [_spread(row.values("first_text_s"), 1000) for row in report.rows]),
        _line("first sound (ms)", [_spread(row.values("first_sound_s"), 1000) for row in report.rows]),
        _line("tokens/s of one user", [_spread(row.values("tokens_per_second"), 1, low=True) for row in report.rows]),
        _line("tokens/s of all users", [f"{row.tokens_per_second:.0f}" for row in report.rows]),
        _line("real-time factor", [_spread(row.values("real_time_factor"), 1, ".2f") for row in report.rows]),
        _line("whole answer (s)", [_spread(row.values("total_s"), 1, ".2f") for row in report.rows]),
        _line("gaps in the speech", [_gaps(row) for row in report.rows]),
        _line("failed answers", [str(len(row.answers) - len(row.good)) for row in report.rows]),
    ]
    return "\n".join([*lines, "", *_notes(report)])


def _notes(report: Report) -> list[str]:
    first = report.first
    notes = [f"Very first answer: {first.error or ReplyFigures.line(first.figures)}."]
    starts = ", ".join(f"{seconds:.0f} s {name}" for name, seconds in report.starts_s.items())
    notes += [f"Start to ready: {starts}."] if starts else []
    held = ", ".join(f"{name} {gib:.1f} GiB" for name, gib in report.memory_gib.items())
    notes += [f"GPU memory: {held}; together {sum(report.memory_gib.values()):.1f} GiB."] if held else []
    notes += [f"The server's own count: {report.server.line()}."] if report.server else []
    notes += [f"vllm bench: {vllm_bench.line(report.vllm_bench)}."] if report.vllm_bench else []
    errors = {answer.error for row in report.rows for answer in row.answers if answer.error}
    return notes + [f"Failed: {error}" for error in sorted(errors)]


def _line(name: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([name, *cells])} |"


def _spread(values: Sequence[float], scale: float, form: str = ".0f", *, low: bool = False) -> str:
    """Median and worst; `low` where small is worse."""
    if not values:
        return "-"
    worst = min(values) if low else max(values)
    return f"{format(statistics.median(values) * scale, form)} / {format(worst * scale, form)}"


def _gaps(row: Row) -> str:
    gaps = [gap for answer in row.good for gap in answer.gaps_s]
    return f"{len(gaps)}, longest {max(gaps) * 1000:.0f} ms" if gaps else "none" if row.values("first_sound_s") else "-"


def questions_of(path: Path) -> tuple[str, ...]:
    """One question a line. Raises BadRequest."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path} cannot be read as text, one question a line.") from error
    return tuple(line.strip() for line in lines if line.strip())
