"""The deploy file of vLLM-Omni 0.30: every value with the reason it is so.

Schema: vllm_omni/config/stage_config.py. Values that are not ours come from the file bundled for Qwen3-Omni.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from omni_app.hardware import GIB, Fact, Gpu
from omni_app.server.budget import (
    CODE2WAV_STAGE,
    FRAMES_AGAIN,
    NEW_FRAMES,
    PIECE_TOKENS,
    PIECES_AT_ONCE,
    TALKER_FRAMES,
    TALKER_STAGE,
    Effort,
    StageMemory,
    talker_tokens,
)
from omni_app.server.checkpoint import Checkpoint

Tree: TypeAlias = "Mapping[str, Fact[Any] | Tree | Sequence[Tree]]"
_CONNECTOR = "connector_of_shared_memory"
_BUNDLED = "as in the bundled file"
GRAPH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384, 512)
"""Tokens of one step; vLLM's own list ends at 512 too, and has 51 sizes to there."""
STATES = 3
"""Of each token in the prefix cache, in BF16: vLLM-Omni mirrors the last layer and the two that a talker would read."""


def utilization(stage: StageMemory, gpus: Sequence[Gpu]) -> float:
    """The stage's share of the smallest of its GPUs, rounded up."""
    return math.ceil(stage.total / _total(stage, gpus) * 1000) / 1000


def _total(stage: StageMemory, gpus: Sequence[Gpu]) -> int:
    return min(gpus[index].memory_total.value for index in stage.devices)


def tree(
    checkpoint: Checkpoint,
    taken: Sequence[StageMemory],
    effort: Effort,
    context: int,
    users: int,
    gpus: Sequence[Gpu],
    switches: Collection[str],
) -> Tree:
    """The whole file, for stages whose devices are indices into `gpus`. Without the switch `small-predictor` the
    talker has no graphs for whole prompts, because its code predictor would be compiled for each of them."""
    unified = gpus[taken[0].devices[0]].unified.value
    thinker = {**_common(taken[0], users, gpus), **_thinker(checkpoint, taken[0], effort, context, users, unified)}
    if len(taken) == 1:
        states = 0 if "no-states" in switches else taken[0].contexts * context * STATES * checkpoint.thinker.hidden * 2
        kept = f"; {states / GIB:.1f} GiB of processor memory keep its states" if states else ""
        thinker["enable_prefix_caching"] = Fact(True, f"what was said before is not computed again{kept}")
        text_only = Fact(
            "qwen3_omni_moe_thinker_only", "no speech was asked for, so talker and code2wav are not loaded"
        )
        return {"pipeline": text_only, "stages": [thinker]}
    thinker["enable_prefix_caching"] = Fact(
        False, "the talker needs the thinker's states of the whole prompt, and caching those too costs 2 ms a token"
    )
    talker = {**_common(taken[1], users, gpus), **_talker(checkpoint, taken[1], effort, context)}
    if "small-predictor" in switches:
        talker["compilation_config"] = _graphs(users, effort)
    pieces = min(users, PIECES_AT_ONCE, effort.code2wav_tokens // PIECE_TOKENS)
    code2wav = {**_common(taken[2], users, gpus), **_slots(users, pieces), **_code2wav(checkpoint, effort)}
    return {
        "async_chunk": Fact(True, "speech starts while the text is still being written"),
        "connectors": {
            _CONNECTOR: {
                "name": Fact("SharedMemoryConnector", "all stages run on this machine"),
                "extra": {
                    "initial_codec_chunk_frames": Fact(4, "a first piece of 0.3 s, so that sound starts early"),
                    "codec_chunk_frames": Fact(
                        NEW_FRAMES, "then pieces of 0.8 s: the next comes before one ends; 2 s left a silence"
                    ),
                    "codec_left_context_frames": Fact(
                        FRAMES_AGAIN, "frames decoded again before each piece, so that no seam is heard"
                    ),
                },
            }
        },
        "stages": [thinker, talker, code2wav],
    }


def _common(stage: StageMemory, users: int, gpus: Sequence[Gpu]) -> dict[str, Any]:
    gib = f"{stage.weights / GIB:.1f} weights + {stage.work / GIB:.1f} work + {stage.kv / GIB:.1f} KV"
    common: dict[str, Any] = {
        "stage_id": Fact(stage.stage, stage.name),
        "devices": Fact(",".join(map(str, stage.devices)), "index among the GPUs that the server sees"),
        "gpu_memory_utilization": Fact(utilization(stage, gpus), f"{gib} GiB of {_total(stage, gpus) / GIB:.1f}"),
        "max_num_seqs": Fact(users, "users at once; more wait for their turn"),
    }
    if len(stage.devices) > 1:
        common["tensor_parallel_size"] = Fact(len(stage.devices), "one of them has no room for half of the users")
    return common


def _together(stage: StageMemory) -> dict[str, Any]:
    """For a stage on several GPUs. What switches multicast off in NCCL and PyTorch does not reach FlashInfer."""
    if len(stage.devices) == 1:
        return {}
    reason = "FlashInfer's sums over GPUs need NVLink multicast, and end the server where a host has none (vllm #48071)"
    return {"pass_config": {"fuse_allreduce_rms": Fact(False, reason)}}


def _kv(stage: StageMemory, tokens: int) -> dict[str, Any]:
    reason = f"{stage.contexts} x {tokens:,} tokens; fixed, because measuring would count the other stages' memory"
    return {
        "kv_cache_memory_bytes": Fact(stage.kv, reason),
        "max_model_len": Fact(tokens, "the context asked for" if stage.stage == 0 else _TALKER_LENGTH),
    }


_TALKER_LENGTH = f"the thinker's context and {TALKER_FRAMES} frames of speech"


def _moe(form: str, quantized: bool) -> dict[str, Any]:
    if quantized:
        return {
            "moe_backend": Fact("auto", f"vLLM chooses for {form.upper()}; Triton, the default here, cannot do NVFP4")
        }
    return {"moe_backend": Fact("triton", f"{form.upper()} experts: {_BUNDLED}")}


def _graphs(users: int, effort: Effort) -> dict[str, Any]:
    own = min(2 * users, GRAPH_SIZES[-1])
    most = GRAPH_SIZES[-1] if effort.prompt_graphs else max(own, 32)
    reason = f"a longer prompt is read without CUDA graphs, some 50 ms later on an H100; vLLM would end at {own}"
    return {"cudagraph_capture_sizes": Fact([size for size in GRAPH_SIZES if size <= most], reason)}


def _thinker(
    checkpoint: Checkpoint, stage: StageMemory, effort: Effort, context: int, users: int, unified: bool
) -> dict[str, Any]:
    found: dict[str, Any] = {
        **_kv(stage, context),
        "max_num_batched_tokens": Fact(
            effort.batched_tokens, "longer prompts go in steps of this; sizes the activations"
        ),
        **_moe(checkpoint.thinker_format, checkpoint.thinker_is_quantized),
        "skip_mm_profiling": Fact(True, "a quicker start: 1 GiB is set aside for the encoders without trying them"),
        "compilation_config": {
            "custom_ops": Fact(["+rotary_embedding"], "compiled rotary embedding changes the speech (vllm-omni #6090)"),
            **_graphs(users, effort),
            **_together(stage),
        },
        "default_sampling_params": {
            "temperature": Fact(0.0, _BUNDLED),
            "max_tokens": Fact(2048, f"{_BUNDLED}: about 1500 words"),
        },
    }
    if unified:
        found["mm_processor_cache_gb"] = Fact(1, "of the memory that GPU and processor share; the default is 4")
    return found


def _talker(checkpoint: Checkpoint, stage: StageMemory, effort: Effort, context: int) -> dict[str, Any]:
    decoder = checkpoint.talker
    return {
        **_kv(stage, talker_tokens(context, decoder) if decoder else context),
        "enable_prefix_caching": Fact(False, _BUNDLED),
        "max_num_batched_tokens": Fact(effort.batched_tokens, "as the thinker, whose steps it follows"),
        **_moe(checkpoint.talker_format, checkpoint.talker_is_quantized),
        **_unquantized(checkpoint, TALKER_STAGE),
        "input_connectors": {"from_stage_0": Fact(_CONNECTOR, "takes the thinker's states")},
        "default_sampling_params": {
            "seed": Fact(42, "without a seed some answers derail into fluent nonsense (vllm-omni #6090)"),
            "temperature": Fact(0.9, _BUNDLED),
            "top_k": Fact(50, _BUNDLED),
            "max_tokens": Fact(TALKER_FRAMES, f"{_BUNDLED}: 5.5 minutes of speech"),
            "repetition_penalty": Fact(1.05, _BUNDLED),
        },
    }


def _slots(users: int, pieces: int) -> dict[str, Any]:
    """Nothing where all users' pieces fit into one step. vLLM-Omni gives the last one what is left of the step's
    tokens, so it would be decoded in two parts (core/sched/omni_generation_scheduler.py); a slot is held for one piece
    only, not for the answer. More than PIECES_AT_ONCE would be decoded without a graph, in memory that nobody planned.
    """
    if pieces == users:
        return {}
    return {"max_num_seqs": Fact(pieces, "pieces of speech in one step: what its memory is planned for; others wait")}


def _code2wav(checkpoint: Checkpoint, effort: Effort) -> dict[str, Any]:
    tokens = effort.code2wav_tokens
    graphs = "CUDA graphs for the usual pieces of speech, each one launch"
    eager = "no CUDA graphs: they take 4 GiB, which this machine does not have to spare"
    return {
        "max_model_len": Fact(tokens, "not more than the tokens of one step, or the server refuses to start"),
        "max_num_batched_tokens": Fact(
            tokens, f"{tokens // PIECE_TOKENS} pieces of {PIECE_TOKENS} tokens in one step; the bundled 65536 costs GBs"
        ),
        "enforce_eager": Fact(not effort.code2wav_graphs, graphs if effort.code2wav_graphs else eager),
        "enable_flashinfer_autotune": Fact(
            False, f"it finds nothing to tune here, and would decode {tokens // 16} frames at once: GBs not planned for"
        ),
        "enable_prefix_caching": Fact(False, _BUNDLED),
        "enable_chunked_prefill": Fact(False, "a piece of speech is decoded whole"),
        "async_scheduling": Fact(False, _BUNDLED),
        **_unquantized(checkpoint, CODE2WAV_STAGE),
        "input_connectors": {"from_stage_1": Fact(_CONNECTOR, "takes the talker's codes")},
        "default_sampling_params": {
            "temperature": Fact(0.0, _BUNDLED),
            "top_p": Fact(1.0, _BUNDLED),
            "top_k": Fact(-1, _BUNDLED),
            "max_tokens": Fact(65536, _BUNDLED),
            "repetition_penalty": Fact(1.1, _BUNDLED),
        },
    }


def _unquantized(checkpoint: Checkpoint, stage: int) -> dict[str, Any]:
    """Take the checkpoint's quantization config from a stage that is in BF16; vLLM-Omni would apply it to all."""
    if not checkpoint.method or (stage == TALKER_STAGE and checkpoint.talker_is_quantized):
        return {}
    return {
        "hf_overrides": {"quantization_config": Fact(None, "this stage's weights are BF16, whatever config.json says")}
    }


# --- writing it


def data(node: Any) -> Any:
    """The tree without its reasons."""
    if isinstance(node, Fact):
        return node.value
    if isinstance(node, Mapping):
        return {key: data(value) for key, value in node.items()}
    return [data(item) for item in node]


def text(node: Tree, head: Sequence[str] = ()) -> str:
    """The tree as YAML, each value with its reason as a comment; `head` are the comments at the top."""
    return "\n".join([*(f"# {line}" for line in head), *_lines(node, "")]) + "\n"


def _lines(node: Tree, indent: str) -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, Fact):
            # JSON is YAML.
            yield f"{indent}{key}: {json.dumps(value.value)}  # {value.reason}"
        elif isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{key}:"
            for item in value:
                first, *rest = _lines(item, indent + "    ")
                yield f"{indent}  - {first.strip()}"
                yield from rest
