"""What the estimate tells Serve's profile is what Serve's profile reads off the finished folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from omni_app.server import checkpoint as serving
from quantize import checkpoint, plan, served
from quantize.schemes import Recipe
from tests.quantize.test_plan import EVERY_PART
from tests.server import model_folder


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [
        (Recipe("NVFP4"), "nvfp4"),
        (Recipe("NVFP4A16"), "nvfp4a16"),
        (Recipe("FP8_DYNAMIC"), "fp8"),
        (Recipe("W4A16"), "w4a16"),
        (Recipe("NVFP4", parts=EVERY_PART), "nvfp4-talker"),
    ],
)
def test_prediction_equals_what_is_read_afterwards(published: Path, tmp_path: Path, recipe: Recipe, kind: str) -> None:
    predicted = served.predict(plan.make(checkpoint.read_source(published), recipe))
    assert predicted is not None
    real = serving.read(model_folder.make(tmp_path / "result", kind))
    told = asdict(real)
    told.pop("folder")
    if kind == "w4a16":  # the folder of headers counts weight_shape as one F32, not as two I64
        told["parts"].pop("experts")
        told["parts"].pop("attention")
    mine = asdict(predicted)
    parts, read = mine.pop("parts"), told.pop("parts")
    assert mine == told
    assert {name: parts[name] for name in read} == read


def test_text_models_are_not_served(text_model: Path) -> None:
    assert served.predict(plan.make(checkpoint.read_source(text_model), Recipe("NVFP4A16"))) is None
