"""The bench against our own API in front of a scripted engine."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from omni_app import api, bench, versus, vllm_bench
from omni_app.bench import Load, Playback
from omni_app.cli import main
from omni_app.errors import BadRequest, EngineFailed, EngineUnavailable
from omni_app.media import Limits
from omni_app.runner import Runner
from omni_app.scrape import between, read, scrape
from omni_app.server.state import ServerFolder, ServerState
from omni_app.settings import Settings
from omni_app.versus import Summary
from omni_app.vllm_bench import Errand
from tests.conftest import Serve
from tests.scripted import ScriptedEngine

pytestmark = pytest.mark.anyio
Served = Callable[[], str]
DATA = Path(__file__).parent / "data/vllm_omni_0_30"


@pytest.fixture
async def engine() -> ScriptedEngine:
    return ScriptedEngine(word_seconds=0.001)


@pytest.fixture
async def endpoint(serve: Serve, engine: ScriptedEngine) -> str:
    settings = Settings(max_replies=8)
    runner = Runner(engine, "", settings.max_replies)
    runner.start()
    return await serve(Starlette(routes=api.routes(runner, settings, Limits.of(settings))))


async def test_every_figure_for_every_number_of_users(endpoint: str, engine: ScriptedEngine, tmp_path: Path) -> None:
    settings = Settings(endpoint=endpoint, data_dir=tmp_path)
    report = await bench.measure(settings, Load(users=(1, 4), rounds=2, tokens=50), report=lambda line: None)
    assert report.model == "echo"
    assert [(row.users, len(row.good), len(row.answers)) for row in report.rows] == [(1, 2, 2), (4, 8, 8)]
    figures = report.rows[1].good[0].figures
    assert figures.first_text_s is not None
    assert figures.first_sound_s is not None
    assert figures.speech_s > 1
    assert report.rows[1].tokens_per_second > 0
    assert len(engine.asked) == 1 + 2 + 8
    assert len({messages[0].text for messages, _ in engine.asked[3:7]}) == 4
    assert all(options.max_tokens == 50 for _, options in engine.asked)
    table = bench.table(report)
    assert table.splitlines()[0] == "|  | 1 user | 4 users |"
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1
    assert json.loads(report.as_json())["rows"][0]["answers"][0]["figures"]["speech_s"] > 1


async def test_text_only(endpoint: str, engine: ScriptedEngine) -> None:
    report = await bench.measure(Settings(endpoint=endpoint), Load((1,), 1, speech=False), report=lambda line: None)
    assert not any(options.speech for _, options in engine.asked)
    assert "| first sound (ms) | - |" in bench.table(report)
    assert "| gaps in the speech | - |" in bench.table(report)


async def test_failed_answers_are_counted_and_named(endpoint: str) -> None:
    load = Load((2,), 1, questions=("fail here please",))
    report = await bench.measure(Settings(endpoint=endpoint), load, report=lambda line: None)
    assert (len(report.rows[0].good), len(report.rows[0].answers)) == (0, 2)
    assert "The engine stopped in the middle of its answer." in bench.table(report).splitlines()[-1]


@pytest.mark.parametrize(("started", "told"), [("{}", True), ("{}/", True), ("http://localhost:1", False), ("", False)])
async def test_a_server_of_this_data_folder_tells_how_long_it_took_to_start(
    endpoint: str, tmp_path: Path, started: str, told: bool
) -> None:
    there = started.format(endpoint.replace("127.0.0.1", "localhost"))
    state = ServerState(status="stopped", endpoint=there, cold_start_s=378.0, warm_start_s=120.0)
    ServerFolder(tmp_path).write(state)
    report = await bench.measure(
        Settings(endpoint=endpoint, data_dir=tmp_path), Load((1,), 1), report=lambda line: None
    )
    assert ("Start to ready: 378 s cold, 120 s warm." in bench.table(report)) is told
    assert report.server is None


async def test_what_the_server_counted_meanwhile(serve: Serve, engine: ScriptedEngine) -> None:
    """The recorded page of a real server stands in for this one's: once as it was, then with two answers more."""
    page = gzip.decompress((DATA / "metrics.txt.gz").read_bytes()).decode()
    done = 'requests_success_total{finished_reason="stop",model_name="/models/qwen3-omni-nvfp4"} '
    pages = iter([page, page.replace(f"{done}10.0", f"{done}12.0")])
    settings = Settings(max_replies=8)
    runner = Runner(engine, "", settings.max_replies)
    runner.start()

    def metrics(_: Request) -> PlainTextResponse:
        return PlainTextResponse(next(pages))

    routes = [Route("/metrics", metrics), *api.routes(runner, settings, Limits.of(settings))]
    endpoint = await serve(Starlette(routes=routes))
    report = await bench.measure(Settings(endpoint=endpoint), Load((1,), 1), report=lambda line: None)
    assert report.server is not None
    assert (report.server.answers, report.server.failed, report.server.still_known) == (2, 0, 0)
    assert report.server.kv_use.keys() == {"thinker", "talker", "code2wav"}
    assert "The server's own count: 2 answers, 0 failed." in bench.table(report)
    assert json.loads(report.as_json())["server"]["answers"] == 2


def test_means_are_of_the_time_between() -> None:
    page = gzip.decompress((DATA / "metrics.txt.gz").read_bytes()).decode()
    counted = between({}, read(page))
    assert counted is not None
    assert counted.answers == 18
    assert counted.first_sound_s == pytest.approx(3.0581605 / 8)
    assert counted.real_time_factor == pytest.approx(4.8253388 / 10)
    assert counted.underrun_s == 0
    assert "first sound 382 ms, real-time factor 0.48, stood still 0 ms" in counted.line()
    assert between(read(page), read(page)).first_sound_s is None  # type: ignore[union-attr]


@pytest.mark.parametrize("page", ["", "<html>", "up 1\n", "broken{ 1\n", "vllm_omni: x\n"])
def test_a_page_of_something_else_counts_nothing(page: str) -> None:
    assert between({}, read(page)) is None


async def test_an_endpoint_without_metrics(serve: Serve, unused_address: str) -> None:
    assert await scrape(unused_address) == {}
    assert await scrape(await serve(Starlette())) == {}
    assert await scrape("http://[") == {}


def test_a_speed_up_is_over_the_first_baseline() -> None:
    slow = Summary(name="bf16", memory_gib=67, tokens_per_second=120, first_text_ms=40)
    fast = Summary(name="nvfp4", memory_gib=54, tokens_per_second=240, first_text_ms=31, real_time_factor=0.125)
    unknown = Summary(name="elsewhere")
    assert versus.table([slow, unknown, fast]).splitlines()[2:] == [
        "| bf16 | 67.0 | 120 | 40 | - | - | 1.00 x |",
        "| elsewhere | - | - | - | - | - | - |",
        "| nvfp4 | 54.0 | 240 | 31 | - | 0.12 | 2.00 x |",
    ]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"summary": {}}', '{"summary": {"name": "x", "memory_gib": "?"}}'])
def test_a_file_that_is_no_baseline(tmp_path: Path, text: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(BadRequest, match="no baseline"):
        versus.summary_of(path)
    with pytest.raises(BadRequest, match="no baseline"):
        versus.summary_of(tmp_path / "none.json")


class TestVllmBench:
    """A stand-in for the tool, whose options and result are those of vllm-omni 0.30's `vllm bench serve --omni`."""

    TOOL = """
import argparse, json, os, sys
parser = argparse.ArgumentParser()
parser.add_argument("command", nargs=2)
for flag in ("omni", "save-result", "disable-tqdm"):
    parser.add_argument(f"--{flag}", action="store_true")
for name in ("backend base-url endpoint model dataset-name random-input-len random-output-len num-prompts "
             "max-concurrency extra-body percentile-metrics result-dir result-filename").split():
    parser.add_argument(f"--{name}", required=True)
given = parser.parse_args()
assert given.command == ["bench", "serve"] and json.loads(given.extra_body) == {"modalities": ["text"], "seed": 1}
if os.environ["OPENAI_API_KEY"] == "wrong":
    sys.exit("Error: 401 Unauthorized")
with open(os.path.join(given.result_dir, given.result_filename), "w") as file:
    json.dump({"completed": int(given.num_prompts), "failed": 0, "median_ttft_ms": 31.5, "date": "x"}, file)
"""

    @pytest.fixture
    def venv(self, tmp_path: Path) -> Path:
        tool = tmp_path / "venv/bin/vllm"
        tool.parent.mkdir(parents=True)
        tool.write_text(f"#!{sys.executable}\n{self.TOOL}")
        tool.chmod(0o755)
        return tmp_path / "venv"

    @pytest.fixture
    def errand(self, tmp_path: Path) -> Errand:
        (tmp_path / "config.json").touch()
        return Errand("http://127.0.0.1:1", str(tmp_path), 2, 50, {"seed": 1}, speech=False)

    async def test_its_figures_are_told(self, venv: Path, errand: Errand) -> None:
        figures = await vllm_bench.run(venv, errand, "")
        assert figures == {"completed": 8, "failed": 0, "median_ttft_ms": 31.5}
        assert vllm_bench.line(figures) == "answers 8, failed 0, median first text ms 31.5"

    async def test_what_it_said_last_when_it_failed(self, venv: Path, errand: Errand) -> None:
        with pytest.raises(EngineFailed, match="it said last: Error: 401 Unauthorized"):
            await vllm_bench.run(venv, errand, "wrong")

    async def test_without_the_tool_or_the_tokenizer(self, venv: Path, errand: Errand, tmp_path: Path) -> None:
        with pytest.raises(EngineUnavailable, match="make serve"):
            await vllm_bench.run(tmp_path, errand, "")
        with pytest.raises(BadRequest, match="where the server runs"):
            await vllm_bench.run(venv, replace(errand, model="echo"), "")


def test_gaps_are_what_a_player_that_starts_at_once_would_hear() -> None:
    playback = Playback()
    for at, seconds in ((1.0, 0.3), (1.2, 0.2), (2.0, 1.0), (2.1, 0.5), (3.6, 0.1)):
        playback.hear(at, seconds)
    assert playback.gaps == pytest.approx([0.5, 0.1])


def test_questions_come_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("One?\n\n  Two?\n")
    assert bench.questions_of(path) == ("One?", "Two?")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadRequest, match="one question a line"):
        bench.questions_of(path)


async def test_an_empty_list_of_questions(endpoint: str) -> None:
    with pytest.raises(BadRequest, match="holds no line"):
        await bench.measure(Settings(endpoint=endpoint), Load(questions=()))


async def test_the_command_prints_the_table_and_writes_json(
    endpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    arguments = ["bench", "--endpoint", endpoint, "--users", "1,2", "--rounds", "1", "--out", str(out)]
    arguments += ["--data-dir", str(tmp_path), "--extra", '{"return_stage_metrics": true}']
    assert await asyncio.to_thread(main, arguments) == 0
    assert "| real-time factor |" in capsys.readouterr().out
    assert len(json.loads(out.read_text())["rows"]) == 2
    assert await asyncio.to_thread(main, [*arguments, "--baseline", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("| echo | - |")
    assert lines[-2].endswith(" 1.00 x |")
    assert lines[-1].startswith("| echo | - |")


async def test_the_command_fails_when_every_answer_did(endpoint: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("fail here please")
    arguments = ["bench", "--endpoint", endpoint, "--users", "1", "--rounds", "1", "--prompts", str(prompts)]
    assert await asyncio.to_thread(main, arguments) == 1
