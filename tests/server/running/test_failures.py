"""Each known failure in one sentence with the way out; the recorded logs, and the messages of vLLM's own code."""

from __future__ import annotations

import signal

import pytest

from omni_app.server.failures import explain
from tests.server.running.test_log import told

MESSAGES = [
    ("ModuleNotFoundError: No module named 'vllm_omni'", "make serve"),
    ("OSError: [Errno 98] error while attempting to bind on address: address already in use", "--serve-port"),
    ("ValueError: World size (2) is larger than the number of available GPUs (1) in this node.", "this machine has: 1"),
    ("RuntimeError: No CUDA GPUs are available", "nvidia-smi"),
    ("RuntimeError: Failed to infer device type, please set VLLM_LOGGING_LEVEL=DEBUG", "nvidia-smi"),
    ("RuntimeError: The NVIDIA driver on your system is too old (found version 12020).", "Update the driver"),
    ("torch.AcceleratorError: CUDA error: no kernel image is available for execution", "compute capability"),
    (
        "ValueError: Free memory on device cuda:0 (30.49/79.32 GiB) on startup is less than desired GPU memory "
        "utilization (0.6, 47.59 GiB). Decrease GPU memory utilization.",
        "wants 47.59 GiB (0.6 of 79.32 GiB), but only 30.49 GiB are free",
    ),
    (
        "ValueError: Free memory on device (0.49/79.32 GiB) on startup is less than desired GPU memory utilization "
        "(0.6, 47.59 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
        "only 0.49 GiB are free",
    ),
    (
        "ValueError: To serve at least one request with the model's max seq len (65536), (6.0 GiB KV cache is needed, "
        "which is larger than the available KV cache memory (3.5 GiB). Based on the available memory, ...",
        "context of 65536 tokens: it needs 6.0 GiB of KV cache, and 3.5 GiB are left",
    ),
    ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`", "KV cache"),
    (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
        "79.18 GiB of which 1.20 GiB is free. Process 1 has 3 GiB memory in use.",
        "2.00 GiB more were needed, 1.20 GiB of 79.18 GiB were free",
    ),
    ("torch.OutOfMemoryError: CUDA out of memory.", "memory ran out"),
    ("ValueError: As of transformers v4.44, default chat template is no longer allowed", "chat_template.json"),
    ("OSError: Can't load tokenizer for '/models/omni'. If you were trying to load it", "tokenizer"),
    (
        "OSError: /models/omni does not appear to have a file named preprocessor_config.json.",
        "preprocessor_config.json",
    ),
    ("OSError: /models/omni does not appear to have a file named config.json.", "Check the path"),
    ("ValueError: Invalid repository ID or local directory specified: '/modles'", "Check the path"),
    ("RuntimeError: Cannot find any model weights with `/models/omni`", "Check the path"),
    ("NotImplementedError: No compressed-tensors compatible scheme was found.", "kept in BF16"),
    (
        "ValueError: There is no module or parameter named 'talker.codec_head.weight_packed' in Qwen3Omni",
        "talker.codec_head.weight_packed",
    ),
    ("ValueError: There is no module or parameter named 'visuals.x' in Qwen3Omni. The", "no place for: visuals.x."),
    ("ValueError: Unknown weight prefix: decoder", "no place for: decoder."),
    ("RuntimeError: local_rank 1 is out of bounds for assigned_physical_gpu_ids [0]", "this machine has: 0."),
    (
        "StageAdmissionError: parallel_stage_init admission failed — per-device budget exceeds capacity. Lower",
        "--no-fast-start",
    ),
    (
        "ValueError: Weight output_size_per_partition = 24 is not divisible by  min_thread_n = 64. Consider reducing",
        "quantized in a way",
    ),
    (
        "ValueError: moe_backend='triton' is not supported for NvFP4 MoE. Expected one of ['cutlass'].",
        "moe_backend triton cannot run NvFP4 experts. Set it to auto",
    ),
    (
        "ValueError: Stage 0 (llm_ar) has explicit engine argument(s) with no structured config owner: ['enable_lora']",
        "enable_lora",
    ),
    ("vllm serve: error: unrecognized arguments: --frobnicate", "--frobnicate"),
    ("OSError: [Errno 28] No space left on device", "Make room"),
    ("pydantic_core.ValidationError: 1 validation error for CacheConfig block_size must be", "refused by CacheConfig"),
]


@pytest.mark.parametrize(("line", "says"), MESSAGES)
def test_a_known_message_becomes_one_sentence_and_is_final(line: str, says: str) -> None:
    prefix = "(StageEngineCoreProc_stage0_replica0 pid=8740) ERROR 11-23 04:10:18 [stage_engine_core_proc.py:190] "
    failure = explain(["(APIServer pid=1) INFO 11-23 04:10:01 [x.py:1] starting", prefix + line], 1)
    assert says in failure.sentence
    assert not failure.retry
    assert "{" not in failure.sentence


def test_the_plans_sum_is_told_when_memory_lacks() -> None:
    failure = explain(["torch.OutOfMemoryError: CUDA out of memory."], 1, "Planned: 35.6 + 19.8 + 7.9 of 79.2 GiB.")
    assert failure.sentence.endswith("Planned: 35.6 + 19.8 + 7.9 of 79.2 GiB.")


@pytest.mark.parametrize(
    ("log", "exit_code", "says", "retry"),
    [
        ("vllm026_cold_init_timeout", 1, "not ready within its own limit of 600 s", True),
        ("vllm026_wrong_tensor_parallel", 1, "than this machine has: 1", False),
        ("vllm030_bad_batched_tokens", 1, "Set its max_model_len to 16384", False),
        ("vllm030_thinker_then_stopped", -signal.SIGTERM, "stopped from outside", True),
        ("vllm030_thinker_then_stopped", -signal.SIGKILL, "main memory ran out", True),
        ("vllm030_thinker_then_stopped", 1, "without saying why", True),
    ],
)
def test_recorded_failures(log: str, exit_code: int, says: str, retry: bool) -> None:
    failure = explain(told(log).lines, exit_code)
    assert says in failure.sentence
    assert failure.retry is retry


def test_warnings_of_a_good_start_are_no_failure() -> None:
    """The good log warns of a missing speech_tokenizer/config.json, among others."""
    assert "without saying why" in explain(told("vllm026_warm_ready").lines, 1).sentence


def test_an_unknown_failure_is_told_by_its_root() -> None:
    lines = [
        "(Worker pid=1) ERROR 11-23 04:10:09 [m.py:901] zlib.error: Error -3",
        "(Worker pid=1) ERROR 11-23 04:10:09 [m.py:901] ZeroDivisionError: float division by zero",
        "(APIServer pid=2) Exception: WorkerProc initialization failed. See stack trace for root cause.",
        "(APIServer pid=2) RuntimeError: Orchestrator initialization failed: Engine core initialization failed.",
    ]
    failure = explain(lines, 1)
    assert failure.sentence == "The server ended with ZeroDivisionError: float division by zero."
    assert failure.retry
