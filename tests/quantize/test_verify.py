"""Verification fails on planted faults, and says which check found them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantize.errors import VerificationFailed
from quantize.verify.names import outer_name
from quantize.verify.report import Check, LayerError, Report
from tests.quantize.conftest import Driver


@pytest.fixture(scope="module")
def failed_checks(drive: Driver, tiny_omni: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return drive("plant_faults.py", tiny_omni, tmp_path_factory.mktemp("sound") / "out")


@pytest.mark.quantize
@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("nan_scale", "scales"),
        ("zeroed_scale", "scales"),
        ("uninitialised_global_scale", "scales"),
        ("plausible_global_scale", "weights near the original"),
        ("unshared_global_scale", "fused layers"),
        ("swapped_experts", "weights near the original"),
        ("quantized_router", "parts kept in BF16"),
        ("missing_tensor", "every tensor"),
        ("missing_global_scale", "packed shapes"),
        ("changed_tower", "untouched parts"),
        ("reshaped_tower", "untouched parts"),
        ("wrong_shape", "packed shapes"),
        ("without_shape", "packed shapes"),
        ("other_shape", "packed shapes"),
        ("plain_ignore", "names for vLLM"),
        ("cut_tokenizer", "side files"),
        ("empty_template", "side files"),
    ],
)
def test_finds_the_planted_fault(failed_checks: Any, fault: str, check: str) -> None:
    assert check in failed_checks[fault]


@pytest.mark.quantize
def test_passes_what_is_sound(failed_checks: Any) -> None:
    assert failed_checks["nothing"] == failed_checks["zero_points"] == []


def test_names_as_vllm_omni_has_them() -> None:
    assert outer_name("thinker.model.layers.0.mlp.gate") == "thinker.language_model.model.layers.0.mlp.gate"
    assert outer_name("talker.model.layers.0.mlp.gate") == "talker.language_model.model.layers.0.mlp.gate"
    assert outer_name("thinker.lm_head") == "thinker.language_model.lm_head"
    assert outer_name("thinker.visual.merger") == "thinker.visual.merger"


def test_a_failed_report_raises_with_the_checks_that_failed() -> None:
    report = Report("out", "in", (Check("scales", False, "3 are not finite"), Check("shapes", True, "fine")))
    assert not report.passed
    with pytest.raises(VerificationFailed, match=r"^scales: 3 are not finite$"):
        report.require()


def test_report_as_a_table() -> None:
    worst = (LayerError("model.layers.0.mlp.up_proj", "nvfp4", 0.0951),)
    table = Report("out", "in", (Check("scales", False, "3 are not finite"),), worst, {}, {"perplexity": 14.7}).table()
    assert "| FAILED | scales | 3 are not finite |" in table
    assert "| model.layers.0.mlp.up_proj | nvfp4 | 0.0951 |" in table
    assert "| perplexity | 14.7000 |" in table
