"""What each scheme costs a real small language model, SmolLM2-135M-Instruct, in perplexity and agreement.

Runs in the quantizer's own interpreter, from the repository's root:

    .venv-quantize/bin/python benchmarks/quantize_quality.py MODEL.gguf WORK_FOLDER OUT.json [RECIPE ...]

The weights are those of the builtin engine's GGUF (Q4_1), read by transformers: the baseline itself was quantized once.
Held out: a lecture of 1861 that comes with the package, and the reference in Python's own documentation, on which
these schemes were measured before. Calibration: licence texts. A result in WORK_FOLDER is measured again, not made
again. Rows are added to OUT.json, and OUT.md has them as a table.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from quantize import checkpoint, engines, job, quality, reload, worker
from quantize.job import Request
from quantize.schemes import Recipe

_GROUP = 64
"""SmolLM2's rows of 576 columns do not divide by the published group of 128."""
_WEIGHTS = {
    "NVFP4A16": Recipe("NVFP4A16", samples=16),
    "NVFP4": Recipe("NVFP4", samples=16),
    "W4A16 g64": Recipe("W4A16", samples=16, group=_GROUP),
}
RECIPES = {"FP8_DYNAMIC": Recipe("FP8_DYNAMIC")} | {
    f"{name} {algorithm}": replace(recipe, algorithm=algorithm)
    for algorithm in ("rtn", "mse", "gptq", "gptq-mse", "awq")
    for name, recipe in _WEIGHTS.items()
}
_LICENCES = ("GPL-3", "MPL-2.0", "GFDL-1.3", "Artistic")
_CHARACTERS = 2_200
"""About 512 tokens."""
_WINDOWS = 8
_COLUMNS = ("perplexity", "perplexity_ratio", "kl", "agreement")


def main(gguf: Path, work: Path, out: Path, *names: str) -> None:
    model = _model(gguf, work / "bf16")
    calibration = _calibration(work / "calibration.jsonl")
    texts = _texts(model)
    before = _states(engines.load(checkpoint.read(model), exact=True), texts)
    rows: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    for name in names or RECIPES:
        folder = work / name.replace(" ", "-")
        seconds = _quantize(model, folder, RECIPES[name], calibration, work / "jobs")
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        known = rows.get(name, {}).get("seconds")
        figures = {"megabytes": round(size / 1e6, 1), "seconds": known if seconds is None else seconds}
        rows[name] = figures | _measured(model, folder, texts, before)
        print(json.dumps({"scheme": name, **rows[name]}), flush=True)
        out.write_text(json.dumps(rows, indent=2) + "\n")
        out.with_suffix(".md").write_text(_table(rows, list(texts)))


def _quantize(model: Path, out: Path, recipe: Recipe, calibration: Path, jobs: Path) -> float | None:
    """Seconds until the result was there and verified, None if it was there before."""
    if out.exists():
        return None
    began = time.monotonic()
    worker.quantize(job.create(jobs, Request(str(model), str(out), recipe, str(calibration))), lambda *step: None)
    return round(time.monotonic() - began, 1)


def _texts(model: Path) -> dict[str, list[Any]]:
    """Token ids by the name of their text."""
    from pydoc_data.topics import topics

    tokenizer = engines.tools_of(checkpoint.read(model))
    documentation = "\n\n".join(topics[name] for name in sorted(topics))[:60_000]
    texts = {"lecture": quality.held_out(), "documentation": documentation}
    return {name: quality.pieces(tokenizer, text, _WINDOWS) for name, text in texts.items()}


def _states(model: Any, texts: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: quality.states(model, given) for name, given in texts.items()}


def _measured(
    source: Path, quantized: Path, texts: dict[str, list[Any]], before: dict[str, list[Any]]
) -> dict[str, dict[str, float]]:
    model: Any = engines.load(checkpoint.read(source), exact=True)
    head = quality.head(model).clone()
    reload.put_weights(model, quantized)
    reload.round_inputs(model, quantized)
    after = _states(model, texts)
    figures = {name: quality.compare(texts[name], before[name], after[name], (head, head)) for name in texts}
    return {name: {key: round(value, 4) for key, value in found.items()} for name, found in figures.items()}


def _table(rows: dict[str, Any], texts: list[str]) -> str:
    """Markdown: perplexity, its ratio to BF16's, KL and agreement on each text."""
    heads = [f"{text}: {column}" for text in texts for column in ("perplexity", "over BF16", "KL", "top 1")]
    first = next(iter(rows.values()))
    base = [f"{first[text]['perplexity_before']:.2f} | 1 | 0 | 1" for text in texts]
    lines = [f"| scheme | MB | s | {' | '.join(heads)} |", "| --- | --- | --- " + "| --- " * len(heads) + "|"]
    lines.append(f"| BF16 | 269 | | {' | '.join(base)} |")
    for name, row in rows.items():
        cells = [f"{row[text][column]:.{2 if column == 'perplexity' else 3}f}" for text in texts for column in _COLUMNS]
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        lines.append(f"| {name} | {row['megabytes']:.0f} | {seconds} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _model(gguf: Path, folder: Path) -> Path:
    """The GGUF's weights as a BF16 checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not folder.exists():
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
        del model.config.quantization_config  # says GGUF, which transformers 5.17 will not save; the weights are plain
        plain = type(model)(model.config).to(torch.bfloat16)
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(folder)
    return folder


def _calibration(path: Path) -> Path:
    folder = Path("/usr/share/common-licenses")
    files = [folder / name for name in _LICENCES if (folder / name).exists()]
    text = "".join(file.read_text(errors="replace") for file in files or [Path("LICENSE")])
    pieces = [text[at : at + _CHARACTERS] for at in range(0, len(text), _CHARACTERS)]
    path.write_text("\n".join(json.dumps({"text": piece}) for piece in pieces))
    return path


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
