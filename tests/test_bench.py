"""The bench against our own API in front of a scripted engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.applications import Starlette

from omni_app import api, bench
from omni_app.bench import Load, Playback
from omni_app.cli import main
from omni_app.errors import BadRequest
from omni_app.media import Limits
from omni_app.runner import Runner
from omni_app.server.state import ServerFolder, ServerState
from omni_app.settings import Settings
from tests.conftest import Serve
from tests.scripted import ScriptedEngine

pytestmark = pytest.mark.anyio
Served = Callable[[], str]


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


async def test_a_server_of_this_data_folder_tells_how_long_it_took_to_start(endpoint: str, tmp_path: Path) -> None:
    ServerFolder(tmp_path).write(ServerState(status="stopped", endpoint=endpoint, ready_after_s=378.0))
    report = await bench.measure(
        Settings(endpoint=endpoint, data_dir=tmp_path), Load((1,), 1), report=lambda line: None
    )
    assert "Start to ready: 378 s." in bench.table(report)


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


async def test_the_command_fails_when_every_answer_did(endpoint: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("fail here please")
    arguments = ["bench", "--endpoint", endpoint, "--users", "1", "--rounds", "1", "--prompts", str(prompts)]
    assert await asyncio.to_thread(main, arguments) == 1
