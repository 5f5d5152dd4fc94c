"""`vllm bench serve --omni`, the server's own benchmark, run against an endpoint; its figures beside ours.

Options and result keys: vllm-omni 0.30, `entrypoints/cli/benchmark/cli_args.py` and `benchmarks/patch/patch.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omni_app.errors import BadRequest, EngineFailed, EngineUnavailable
from omni_app.scratch import scratch

LONGEST_S = 900.0
PROMPTS_EACH = 4
"""Requests for each user of the load."""
INPUT_TOKENS = 64
SHOWN = {
    "completed": "answers",
    "failed": "failed",
    "output_throughput": "tokens/s",
    "median_ttft_ms": "median first text ms",
    "median_tpot_ms": "median ms per token",
    "median_audio_ttfp_ms": "median first sound ms",
    "median_audio_rtf": "median real-time factor",
    "audio_throughput": "seconds of speech per second",
    "mean_audio_underrun_s": "mean seconds of silence",
}
"""Keys of its result, and what they mean."""


@dataclass(frozen=True, slots=True)
class Errand:
    """What the tool is to ask, and of whom."""

    endpoint: str
    model: str
    """As it is served; the tool takes the tokenizer from that folder."""
    users: int
    tokens: int
    extra: Mapping[str, object]
    """More fields of each request."""
    speech: bool


def command(venv: Path, errand: Errand, result: Path) -> list[str]:
    """Raises EngineUnavailable without that environment, BadRequest when the tokenizer is not on this machine."""
    vllm = venv.expanduser().absolute() / "bin" / "vllm"
    if not vllm.is_file():
        raise EngineUnavailable(f"`vllm bench` is not installed in {venv}. Build that environment with `make serve`.")
    if not (Path(errand.model) / "config.json").is_file():
        raise BadRequest(
            f"`vllm bench` makes its prompts with the model's tokenizer, and {errand.model} is no folder of a model on "
            "this machine. Run it where the server runs."
        )
    body = {"modalities": ["text", "audio"] if errand.speech else ["text"], **errand.extra}
    audio = "audio_ttfp,audio_rtf,audio_duration,audio_underrun"
    return [
        str(vllm), "bench", "serve", "--omni", "--backend", "openai-chat-omni", "--base-url", errand.endpoint,
        "--endpoint", "/v1/chat/completions", "--model", errand.model, "--dataset-name", "random",
        "--random-input-len", str(INPUT_TOKENS), "--random-output-len", str(errand.tokens),
        "--num-prompts", str(PROMPTS_EACH * errand.users), "--max-concurrency", str(errand.users),
        "--extra-body", json.dumps(body), "--disable-tqdm",
        "--percentile-metrics", f"ttft,tpot,itl,e2el{',' + audio if errand.speech else ''}",
        "--save-result", "--result-dir", str(result.parent), "--result-filename", result.name,
    ]  # fmt: skip


async def run(venv: Path, errand: Errand, key: str) -> dict[str, float]:
    """The figures of SHOWN that it found. Raises what `command` does, and EngineFailed when it fails or hangs."""
    with scratch() as folder:
        result = folder / "result.json"
        argv = command(venv, errand, result)
        # Without a key the tool would send the word None.
        child = await asyncio.create_subprocess_exec(
            *argv, env={**os.environ, "OPENAI_API_KEY": key or "none"}, cwd=folder, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            said, _ = await asyncio.wait_for(child.communicate(), LONGEST_S)
        except TimeoutError as error:
            raise EngineFailed(f"`vllm bench` did not end within {LONGEST_S:.0f} s.") from error
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        return _figures(result, said.decode("utf-8", "replace"))


def _figures(result: Path, said: str) -> dict[str, float]:
    try:
        found = json.loads(result.read_bytes())
    except (OSError, ValueError) as error:
        last = next((line for line in reversed(said.splitlines()) if line.strip()), "nothing")
        raise EngineFailed(f"`vllm bench` left no result; it said last: {last[:300]}") from error
    return {key: float(found[key]) for key in SHOWN if isinstance(found.get(key), int | float)}


def line(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{SHOWN[key]} {value:.4g}" for key, value in figures.items())
