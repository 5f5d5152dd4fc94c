"""What servers of the OpenAI style do each in their own way, and how to tell which one answers.

Sources, as read in November 2026; a release may have moved on:

- SGLang-Omni: github.com/sgl-project/sglang-omni, sglang_omni/serve/openai_api.py and protocol.py,
  docs/basic_usage/qwen3_omni.md. `owned_by` is "sglang-omni"; speech is `delta.audio.data`, each piece a whole WAV
  file; the voice of Qwen3-Omni cannot be chosen; a text-only pipeline takes `modalities` with audio and stays silent.
- TensorRT Edge-LLM 0.11: github.com/NVIDIA/TensorRT-Edge-LLM, docs/source/user_guide/examples/experimental-server.md,
  experimental/server/api/routes.py, protocol.py and serving_chat.py. `owned_by` is "tensorrt-edgellm"; an unknown field
  is refused; `audio` goes with `modalities`, its only format is pcm16, and names the voice; pieces say their
  `sample_rate`; `/health` tells the capabilities and `/v1/voices` the voices.
- vLLM: github.com/vllm-project/vllm, vllm/entrypoints/openai/engine/protocol.py. `owned_by` is "vllm"; text only.
  vllm-omni says the same of itself; its `/metrics` has `vllm_omni:` series (tests/data/vllm_omni_0_30).
- llama.cpp: github.com/ggml-org/llama.cpp, tools/server, run here (xllamacpp 2026.11). `owned_by` is "llamacpp"; text
  only; a picture without a projector is refused with HTTP 500.
- OpenAI: the `openai` package's types/chat/chat_completion_audio_param.py (voices), and a stream shown in
  community.openai.com/t/waiting-for-gpt-4o-audio-preview/970884: the text comes as `delta.audio.transcript`, and a
  stream's only format is pcm16, 24 kHz.
- This app's own API: omni_app/api.py; vllm-omni's dialect, and `/v1/models` tells voices and modalities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from omni_app.conversation import ReplyOptions
from omni_app.wire import Connection

Body = dict[str, object]

VLLM_OMNI_ONLY = ("return_stage_metrics", "sampling_params_list")
"""Fields that only vllm-omni knows; TensorRT Edge-LLM refuses a request for one field too many."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One kind of server. `speech` is how its chunks carry speech: not at all, as OpenAI's, or as vllm-omni's."""

    name: str
    speech: Literal["none", "openai", "vllm-omni"] = "openai"
    audio_format: str = "pcm16"
    voices: tuple[str, ...] = ()
    """For a server that does not list them; the first is taken when none is asked for and `needs_voice`."""
    needs_voice: bool = False
    limit: str = "max_tokens"
    """The field that holds the token limit."""


OWN = Dialect("another copy of this app", speech="vllm-omni")
VLLM_OMNI = Dialect("vllm-omni", speech="vllm-omni")
VLLM = Dialect("vLLM", speech="none")
SGLANG = Dialect("SGLang", speech="none")
LLAMA_CPP = Dialect("llama.cpp", speech="none")
SGLANG_OMNI = Dialect("SGLang-Omni", audio_format="wav")
EDGE_LLM = Dialect("TensorRT Edge-LLM")
OPENAI = Dialect(
    "OpenAI",
    voices=("alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse", "marin", "cedar"),
    needs_voice=True,
    limit="max_completion_tokens",
)
OTHER = Dialect("an OpenAI-style server")
OWNERS = {
    "vllm": VLLM, "sglang": SGLANG, "llamacpp": LLAMA_CPP, "sglang-omni": SGLANG_OMNI, "tensorrt-edgellm": EDGE_LLM,
    "openai": OPENAI,
}  # fmt: skip
"""`owned_by` of a model in `/v1/models`."""


async def recognise(server: Connection, entry: Mapping[str, object]) -> Dialect:
    """Which dialect the server of this `/v1/models` entry speaks. Raises EngineUnavailable."""
    if describes_itself(entry):
        return OWN
    if server.host.endswith("openai.com"):
        return OPENAI
    found = OWNERS.get(str(entry.get("owned_by")), OTHER)
    return VLLM_OMNI if found is VLLM and await _is_omni(server) else found


def describes_itself(entry: Mapping[str, object]) -> bool:
    """Whether a `/v1/models` entry tells what the model takes and gives, as that of this app's API does."""
    return isinstance(entry.get("modalities"), list) and isinstance(entry.get("speaks"), bool)


async def _is_omni(server: Connection) -> bool:
    metrics = await server.send("GET", "/metrics")
    if metrics.status_code == 200:
        return b"vllm_omni:" in metrics.content
    return (await server.send("GET", "/v1/audio/voices")).status_code == 200


def translated(body: Body, options: ReplyOptions, dialect: Dialect) -> Body:
    """A request body of `wire.build_request`, as this dialect wants it."""
    if dialect.speech == "vllm-omni":
        return body
    dropped = {"modalities", "audio", "voice", "mm_processor_kwargs", "max_tokens", *VLLM_OMNI_ONLY}
    kept = {key: value for key, value in body.items() if key not in dropped}
    messages = body["messages"]
    kept["messages"] = [_message(one) for one in messages] if isinstance(messages, list) else messages
    kept[dialect.limit] = body["max_tokens"]
    return kept | (_speech(options, dialect) if options.speech else {})


def _speech(options: ReplyOptions, dialect: Dialect) -> Body:
    voice = options.voice or (dialect.voices[0] if dialect.needs_voice else "")
    return {
        "modalities": ["text", "audio"],
        "audio": {"format": dialect.audio_format, **({"voice": voice} if voice else {})},
    }


def _message(message: Mapping[str, object]) -> Body:
    content = message["content"]
    return {**message, "content": [_part(part) for part in content] if isinstance(content, list) else content}


def _part(part: Mapping[str, object]) -> Mapping[str, object]:
    """OpenAI itself knows only `input_audio`, which all others know too; our sounds are WAV files."""
    url = part["audio_url"] if part.get("type") == "audio_url" else None
    if not isinstance(url, Mapping):
        return part
    return {"type": "input_audio", "input_audio": {"data": str(url["url"]).partition(",")[2], "format": "wav"}}
