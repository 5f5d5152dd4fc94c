from __future__ import annotations

import pytest

from omni_app.engines import SPECS, choose
from omni_app.errors import BadRequest
from omni_app.settings import Settings


@pytest.mark.parametrize(
    ("engine", "endpoint", "chosen", "why"),
    [
        ("auto", "", "builtin", "Qwen3-Omni itself needs a GPU"),
        ("auto", "http://gpu:8091", "endpoint", "OMNI_ENDPOINT names a server"),
        ("builtin", "http://gpu:8091", "builtin", "OMNI_ENGINE asks for builtin"),
        ("vllm-omni", "http://gpu:8091", "vllm-omni", "OMNI_ENGINE asks for vllm-omni"),
        ("openai-compatible", "http://gpu:8000", "openai-compatible", "OMNI_ENGINE asks for openai-compatible"),
    ],
)
def test_the_choice_and_its_reason(engine: str, endpoint: str, chosen: str, why: str) -> None:
    spec, reason = choose(Settings(engine=engine, endpoint=endpoint))
    assert spec.name == chosen
    assert why in reason


def test_a_password_in_the_address_is_not_shown() -> None:
    _, reason = choose(Settings(engine="auto", endpoint="http://user:secret@gpu:8091"))
    assert "secret" not in reason


def test_an_unknown_engine_lists_the_known_ones() -> None:
    with pytest.raises(BadRequest, match=r"auto, builtin, openai-compatible, .*vllm-omni"):
        choose(Settings(engine="skynet"))


def test_every_engine_names_itself_and_can_be_made() -> None:
    for name, spec in SPECS.items():
        assert spec.create(Settings(endpoint="http://gpu:8091")).status().name == name
