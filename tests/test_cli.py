"""The command line: help, one flag per setting, and mistakes answered by one sentence and an exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omni_app.cli import Command, main
from omni_app.settings import Settings


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("run", "serve", "doctor", "bench", "transcribe", "fetch"))
    assert main([]) == 0
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("command", list(Command.model_fields))
def test_every_setting_is_a_flag_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    missing = [name for name in Settings.model_fields if f"--{name.replace('_', '-')}" not in said]
    assert missing == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nope"], "invalid choice: 'nope'"),
        (["run", "--nope"], "unrecognized arguments: --nope. See python -m omni_app run --help"),
        (["serve"], "required: MODEL"),
        (["serve", "/m", "--data-dir", "~nobody-here/x"], "no user whose folder ~nobody-here/x"),
        (["run", "--port", "70000"], "--port (OMNI_PORT): Input should be less than or equal to 65535."),
        (["bench", "--users", "four"], "--users"),
        (["bench", "--users", "0"], "--users"),
        (["bench", "--rounds", "0"], "--rounds"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_status_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert (said.out, len(said.err.splitlines())) == ("", 1)


def test_a_wrong_environment_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMNI_PORT", "many")
    assert main(["bench"]) == 2
    assert "(OMNI_PORT)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serve", "/m", "--serve-venv", "/nowhere"], "/m is not a folder"),
        (["serve", "/m", "--users", "0"], "at least one user"),
        (["bench", "--prompts", "/nowhere.txt"], "/nowhere.txt cannot be read"),
        (["bench", "--endpoint", "ftp://x"], "OMNI_ENDPOINT must be an address"),
        (["run", "--engine", "nope"], "no engine called nope"),
        (["transcribe", "assets/sign.png"], "There is no sound in sign.png"),
        (["transcribe", "/nowhere.wav"], "nowhere.wav"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_status_1(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said


def test_doctor_says_it_in_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--json", "--data-dir", str(tmp_path)]) in (0, 1)
    assert json.loads(capsys.readouterr().out)


@pytest.mark.models
def test_transcribe_prints_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "assets/question.wav"]) == 0
    assert "largest planet" in capsys.readouterr().out.lower()
