"""The command line: `python -m omni_app run | serve MODEL | doctor | bench | transcribe FILE | fetch`.

Every setting is a flag of each command.

Exit status: 0 done, 1 it could not be done, 2 the command line itself is wrong. Errors are one sentence.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, PositiveInt, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, CliApp, CliPositionalArg, CliSubCommand, SettingsConfigDict, SettingsError

from omni_app.errors import BadRequest, OmniError
from omni_app.server.profile import Wishes
from omni_app.settings import Settings


class Run(Settings):
    """Start the app: page, API and engine. The same as `python app.py`."""

    def cli_cmd(self) -> None:
        from omni_app.ui.launch import launch

        launch(self)


class Serve(Settings):
    """Serve a Qwen3-Omni model with vLLM-Omni: plan for this machine, start, warm up, watch. Ctrl-C stops it all."""

    model: CliPositionalArg[Path] = Field(description="Folder of the model.")
    speech: bool = Field(True, description="Serve the parts that speak too; without them there is room for more text.")
    users: int = Field(Wishes().users, description="People who talk to it at the same time.")
    context: int = Field(Wishes().context_tokens, description="Longest conversation, in tokens, answers included.")
    fast_start: bool = Field(True, description="Use vLLM-Omni's quicker ways to start; without, as `vllm serve` does.")
    deploy_config: Path | None = Field(None, description="A deploy YAML of your own, instead of the plan's.")
    vllm_args: str = Field("", description='More for `vllm serve`: --vllm-args="--init-timeout 7200".')
    only_plan: bool = Field(False, description="Only show the plan: memory, YAML and command.")

    def cli_cmd(self) -> None:
        from omni_app.server import foreground, prepare

        wishes = Wishes(self.speech, self.users, self.context, self.fast_start)
        order = prepare.Order(self.model, wishes, self.deploy_config, _split(self.vllm_args))
        if not self.only_plan:
            foreground.clear(self)
        prepared = prepare.prepare(self, order, self.only_plan)
        print("\n".join(prepared.lines()), flush=True)
        if not self.only_plan:
            foreground.serve(self, prepared)


def _split(arguments: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(arguments))
    except ValueError as error:
        raise BadRequest(f"--vllm-args cannot be read ({error}); write it as a shell would.") from error


class Doctor(Settings):
    """Look at this machine and say what works, what does not, and why."""

    as_json: bool = Field(False, alias="json", description="Print JSON.")

    def cli_cmd(self) -> None:
        from omni_app import doctor

        raise SystemExit(doctor.run(self, self.as_json))


class Bench(Settings):
    """Measure an endpoint; by default this app's own API at --port."""

    users: list[PositiveInt] = Field([1, 4, 8, 16], description="Numbers of users to measure, such as 1,4.")
    rounds: int = Field(2, ge=1, description="Questions that each user asks.")
    tokens: int = Field(128, ge=1, description="Most tokens of an answer.")
    speech: bool = Field(True, description="Ask for speech too.")
    prompts: Path | None = Field(None, description="Questions to ask, one a line.")
    extra: dict[str, object] = Field({}, description="More fields of each request, as JSON.")
    out: Path | None = Field(None, description="Write all figures to this file, as JSON.")
    baseline: list[Path] = Field([], description="Files of earlier --out, to compare with; the first counts as 1.")
    vllm_bench: bool = Field(False, description="Let `vllm bench serve --omni` of the serve environment measure too.")

    def cli_cmd(self) -> None:
        from omni_app import bench, versus

        baselines = [versus.summary_of(path) for path in self.baseline]
        own_api = {"endpoint": f"http://127.0.0.1:{self.port}", "api_key": self.serve_key}
        settings = self if self.endpoint else self.model_copy(update=own_api)
        questions = bench.questions_of(self.prompts) if self.prompts else bench.QUESTIONS
        load = bench.Load(tuple(self.users), self.rounds, self.tokens, self.speech, questions, self.extra)
        report = asyncio.run(bench.measure(settings, load, with_vllm=self.vllm_bench))
        print(bench.table(report))
        if baselines:
            print(f"\n{versus.table([*baselines, report.summary])}")
        if self.out:
            self.out.write_text(report.as_json() + "\n")
        if not any(row.good for row in report.rows):
            raise SystemExit(1)


class Transcribe(Settings):
    """Write down what is said in a sound file, by the builtin engine's listener, which knows English."""

    file: CliPositionalArg[Path] = Field(description="WAV, MP3 or another sound; or a clip.")

    def cli_cmd(self) -> None:
        from omni_app.media.limits import Limits
        from omni_app.transcribe import transcribe

        print(transcribe(self.file, Limits.of(self)))


class Fetch(Settings):
    """Fetch and check the model files of the builtin engine."""

    def cli_cmd(self) -> None:
        from omni_app.engines.builtin.assets import ensure_all, models_dir

        ensure_all(self.cache_dir, lambda line: print(line, flush=True))
        print(f"All model files are in {models_dir(self.cache_dir)}.")


class Space(Settings):
    """Lay out the files of a Hugging Face Space in a new folder, ready to be pushed."""

    folder: CliPositionalArg[Path] = Field(description="A new or empty folder.")

    def cli_cmd(self) -> None:
        from omni_app import space

        files = space.lay_out(self.folder)
        size = sum((self.folder / file).stat().st_size for file in files) / 1e6
        print(f"{len(files)} files ({size:.1f} MB) are in {self.folder}. Push them with")
        print(f"  hf upload --repo-type space OWNER/NAME {self.folder} .")


class Command(BaseSettings):
    """Talk to Qwen3-Omni: in a page, over an API, with a server of your own."""

    model_config = SettingsConfigDict(
        cli_prog_name="python -m omni_app", cli_kebab_case=True, cli_implicit_flags=True, cli_exit_on_error=False,
        cli_avoid_json=True,
    )  # fmt: skip

    run: CliSubCommand[Run] = Field(description=Run.__doc__)
    serve: CliSubCommand[Serve] = Field(description=Serve.__doc__)
    doctor: CliSubCommand[Doctor] = Field(description=Doctor.__doc__)
    bench: CliSubCommand[Bench] = Field(description=Bench.__doc__)
    transcribe: CliSubCommand[Transcribe] = Field(description=Transcribe.__doc__)
    fetch: CliSubCommand[Fetch] = Field(description=Fetch.__doc__)
    space: CliSubCommand[Space] = Field(description=Space.__doc__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        _obey(given)
    except SettingsError as error:
        return _complain(f"{str(error).removeprefix('error parsing CLI: ')}. See {_command(given)} --help.", 2)
    except ValidationError as error:
        return _complain("\n".join(map(_fault, error.errors())), 2)
    except OmniError as error:
        return _complain(str(error), 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return _unread()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _obey(given: list[str]) -> None:
    try:
        CliApp.run_subcommand(CliApp.run(Command, cli_args=given), cli_exit_on_error=False)
    finally:
        sys.stdout.flush()  # here and not at Python's end, which would complain where nobody reads


def _unread() -> int:
    """Whoever read our output, such as `head`, has had enough: end as other programs do, without a word."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at its end
    return 128 + signal.SIGPIPE


def _complain(sentence: str, status: int) -> int:
    print(sentence, file=sys.stderr)
    return status


def _command(given: Sequence[str]) -> str:
    known = given[0] in Command.model_fields
    return f"python -m omni_app {given[0]}" if known else "python -m omni_app"


def _fault(fault: ErrorDetails) -> str:
    """One refused value, by its flag; the same value may have come from the environment."""
    name = str(fault["loc"][-1] if len(fault["loc"]) < 3 else fault["loc"][1])
    return f"--{name.replace('_', '-')} (OMNI_{name.upper()}): {fault['msg']}."
