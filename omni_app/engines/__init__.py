"""The engines that can answer, and the choice among them."""

from __future__ import annotations

from omni_app.engines import builtin
from omni_app.engines.base import Engine, EngineSpec
from omni_app.errors import BadRequest
from omni_app.settings import Settings

__all__ = ["SPECS", "choose"]


def _vllm_omni(settings: Settings) -> Engine:
    from omni_app.engines.vllm_omni import VllmOmniEngine

    return VllmOmniEngine(settings)


def _openai_compatible(settings: Settings) -> Engine:
    from omni_app.engines.openai_compatible import OpenAICompatibleEngine

    return OpenAICompatibleEngine(settings)


def _endpoint(settings: Settings) -> Engine:
    from omni_app.engines.endpoint import EndpointEngine

    return EndpointEngine(settings)


def _transformers(settings: Settings) -> Engine:
    from omni_app.engines.hf_transformers import TransformersEngine

    return TransformersEngine(settings)


SPECS: dict[str, EngineSpec] = {
    spec.name: spec
    for spec in (
        EngineSpec(
            "vllm-omni",
            "Qwen3-Omni itself, on a running vllm-omni server",
            "the address of that server in OMNI_ENDPOINT",
            _vllm_omni,
        ),
        EngineSpec(
            "openai-compatible",
            "any other OpenAI-style server: SGLang-Omni, TensorRT Edge-LLM, vLLM, OpenAI",
            "the address of that server in OMNI_ENDPOINT",
            _openai_compatible,
        ),
        EngineSpec(
            "transformers",
            "Qwen3-Omni with transformers in this process: the baseline, and BitsAndBytes 4-bit",
            "the environment of `make transformers-env`, and the model in OMNI_TRANSFORMERS_MODEL",
            _transformers,
        ),
        EngineSpec(
            "builtin",
            "small models for each sense, on this machine's processor",
            "nothing but a few hundred megabytes of disk and memory",
            builtin.create,
        ),
    )
}

ENDPOINT = EngineSpec(
    "endpoint", "whatever server is named, after asking it what it is", "its address in OMNI_ENDPOINT", _endpoint
)


def choose(settings: Settings) -> tuple[EngineSpec, str]:
    """The engine to use, and one sentence that says why. Raises BadRequest for a name that is not known."""
    if settings.engine != "auto":
        return _named(settings.engine), f"OMNI_ENGINE asks for {settings.engine}."
    if settings.endpoint:
        return ENDPOINT, "OMNI_ENDPOINT names a server."
    return SPECS["builtin"], (
        "Qwen3-Omni itself needs a GPU: the System page starts it where one is, or OMNI_ENDPOINT names its server."
    )


def _named(name: str) -> EngineSpec:
    if name not in SPECS:
        raise BadRequest(f"There is no engine called {name}; OMNI_ENGINE may be auto, {', '.join(sorted(SPECS))}.")
    return SPECS[name]
