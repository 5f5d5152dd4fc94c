"""Run recipes in this process and print what came of each: `python run_recipes.py SOURCE OUT RECIPES [CALIBRATION]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from quantize import checkpoint, job, worker
from quantize.errors import QuantizeError
from quantize.job import Request
from quantize.schemes import Recipe


def outcome(source: str, out: Path, settings: dict[str, Any], calibration: str) -> dict[str, Any]:
    recipe = Recipe(**{**settings, "parts": tuple(settings.get("parts", ()))})
    made = job.create(out.parent / "jobs", Request(source, str(out), recipe, calibration))
    try:
        worker.quantize(made, lambda *step: None)
    except QuantizeError as error:
        return {"error": str(error), "folder": str(out)}
    found = checkpoint.read(out)
    dtypes = {name: tensor.dtype for name, tensor in found.tensors.items()}
    return {
        "folder": str(out), "job": str(made.folder), "size": found.size, "dtypes": dtypes, "report": made.report,
        "config": found.config,
    }  # fmt: skip


def main(source: str, out: str, recipes: str, calibration: str = "") -> None:
    results = {
        name: outcome(source, Path(out) / name, settings, calibration) for name, settings in json.loads(recipes).items()
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
