"""Why a server did not start or died, in one sentence with the way out.

Each pattern was compared with the place that writes the message, named above its rule: vllm 0.30.0 and vllm-omni
0.30.0 (paths within their packages), transformers 5, argparse, the C library, CUDA's error strings. `recorded` means
that a log of a real start with it is among the tests' data. PyTorch's messages are written in C++, by c10/cuda, and
are taken from reports of them.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Failure:
    sentence: str
    retry: bool = True
    """Whether starting again may help; False for what stays wrong until somebody changes something."""


@dataclass(frozen=True, slots=True)
class Rule:
    pattern: re.Pattern[str]
    sentence: str
    """May name the pattern's groups, and {memory}: how the plan shares the memory out."""
    retry: bool = False


def _rule(pattern: str, sentence: str, *, retry: bool = False) -> Rule:
    return Rule(re.compile(pattern), sentence, retry)


LESS_MEMORY = "Use fewer users or a shorter context (--users, --context), text only (--no-speech), or a larger GPU."
KEEP_BF16 = (
    "Quantize it again with that part kept in BF16; for Qwen3-Omni only the thinker's language model may be NVFP4."
)
RULES: tuple[Rule, ...] = (
    _rule(
        r"No module named '(?P<module>vllm\w*|torch)'",
        "{module} is not installed in the server's environment. Build it with `make serve`.",
    ),
    # EADDRINUSE
    _rule(
        r"[Aa]ddress already in use",
        "The server's port is taken by another program. Stop that program, or choose another port with --serve-port.",
    ),
    # recorded; vllm/v1/worker/gpu_worker.py, vllm/config/parallel.py
    _rule(
        r"local rank \d+ is out of bounds for (?P<gpus>\d+) devices"
        r"|local_rank \d+ is out of bounds for assigned_physical_gpu_ids \[(?P<ids>[\d, ]*)\]"
        r"|[Ww]orld size \(?\d+\)? is larger than the number of available GPUs \(?(?P<seen>\d+)",
        "More GPUs were asked for (tensor parallel) than this machine has: {gpus}{ids}{seen}. "
        "Lower tensor_parallel_size to that, or name other devices.",
    ),
    # PyTorch; vllm/config/device.py; the loader; cudaErrorNoDevice; vllm/third_party/pynvml.py
    _rule(
        r"No CUDA GPUs are available|Found no NVIDIA driver|Failed to infer device type"
        r"|libcuda\.so\.1: cannot open|no CUDA-capable device|NVML Shared Library Not Found",
        "No CUDA device can be used. `nvidia-smi` must list a GPU here; install the NVIDIA driver, or give the "
        "container the GPU (--gpus all).",
    ),
    # cudaErrorInsufficientDriver; PyTorch
    _rule(
        r"CUDA driver version is insufficient|NVIDIA driver on your system is too old",
        "The NVIDIA driver is too old for the server's CUDA. Update the driver; `python -m omni_app doctor` names it.",
    ),
    # cudaErrorNoKernelImageForDevice
    _rule(
        r"no kernel image is available",
        "The installed vLLM has no kernels for this GPU's compute capability. Install a vLLM built for it.",
    ),
    # vllm/v1/worker/utils.py; vllm-omni only warns of it and takes what is free
    _rule(
        r"Free memory on device[^(]*\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less than desired GPU "
        r"memory utilization \((?P<fraction>[\d.]+), (?P<wanted>[\d.]+) GiB\)",
        "Not enough GPU memory: a stage wants {wanted} GiB ({fraction} of {total} GiB), but only {free} GiB are free. "
        "Stop what else uses the GPU (`nvidia-smi` lists it).{memory}",
    ),
    # vllm/v1/core/kv_cache_utils.py, this one and the next
    _rule(
        r"max seq len \((?P<context>\d+)\)[^(]*\((?P<wanted>[\d.]+) GiB KV cache is needed, which is larger than the "
        r"available KV cache memory \((?P<free>[\d.]+) GiB\)",
        "Not enough GPU memory for a context of {context} tokens: it needs {wanted} GiB of KV cache, and {free} GiB "
        "are left beside the weights. Lower --context, or use a larger GPU.{memory}",
    ),
    _rule(
        r"No available memory for the cache blocks",
        f"Not enough GPU memory: nothing is left for the KV cache beside the weights. {LESS_MEMORY}{{memory}}",
    ),
    # PyTorch, this one and the next
    _rule(
        r"CUDA out of memory\. Tried to allocate (?P<wanted>[\d.]+ [GMK]iB)\."
        r".*?total capacity of (?P<total>[\d.]+ [GMK]iB) of which (?P<free>[\d.]+ [GMK]iB) is free",
        "The GPU's memory ran out: {wanted} more were needed, {free} of {total} were free. "
        f"{LESS_MEMORY}{{memory}}",
    ),
    _rule(
        r"CUDA out of memory|OutOfMemoryError",
        f"The GPU's memory ran out. {LESS_MEMORY}{{memory}}",
    ),
    # vllm-omni engine/stage_admission.py
    _rule(
        r"parallel_stage_init admission (?:failed|cannot account)[^.]*\.",
        "vllm-omni does not let the stages start at the same time, because it counts more memory for that than the GPU "
        "has. Start them one after the other: --no-fast-start.",
    ),
    # recorded; vllm/config/scheduler.py
    _rule(
        r"max_num_batched_tokens \((?P<batched>\d+)\) is smaller than max_model_len \((?P<context>\d+)\)",
        "The deploy configuration was refused: a stage takes {batched} tokens a batch (max_num_batched_tokens) but "
        "promises {context} tokens a conversation (max_model_len). Set its max_model_len to {batched} or less.",
    ),
    # vllm-omni config/omni_config.py
    _rule(
        r"explicit engine argument\(s\) with no structured config owner[^\w]*(?P<what>.{0,120})",
        "The deploy configuration was refused: vllm-omni does not take {what}. Remove it.",
    ),
    # recorded; vllm-omni engine/omni_engine_base.py
    _rule(
        r"did not become ready within (?P<limit>\d+)s",
        "The server was not ready within its own limit of {limit} s. Compiled kernels are kept, so another start is "
        "quicker; else raise --init-timeout.",
        retry=True,
    ),
    # vllm/renderers/hf.py
    _rule(
        r"default chat template is no longer allowed",
        "The model folder has no chat template. Copy chat_template.json (or chat_template.jinja) from the original "
        "model into it.",
    ),
    # transformers: tokenization_utils_base.py, tokenization_utils_tokenizers.py, *_processing_*.py, utils/hub.py
    _rule(
        r"Can't load tokenizer for|Unable to load vocabulary|Couldn't instantiate the backend tokenizer"
        r"|Can't load (?:feature extractor|image processor|processor) for"
        r"|does not appear to have a file named (?:pre|video_pre)?processor_config",
        "The model folder lacks its tokenizer or processor. Copy tokenizer*.json, vocab.json, merges.txt and "
        "preprocessor_config.json from the original model into it.",
    ),
    # transformers utils/hub.py; vllm/transformers_utils/config.py, vllm/model_executor/model_loader/default_loader.py
    _rule(
        r"does not appear to have a file named config\.json|Invalid repository ID or local directory specified"
        r"|is not a local folder and is not a valid model|Cannot find any model weights with",
        "That is no folder with a Qwen3-Omni checkpoint: it must hold config.json and *.safetensors. Check the path.",
    ),
    # vllm/model_executor/models/utils.py
    _rule(
        r"There is no module or parameter named '?(?P<part>[\w.]+_(?:packed|scale|scale_2|global_scale))\b",
        "The checkpoint has a part quantized that vllm-omni cannot serve quantized: {part}. " + KEEP_BF16,
    ),
    # vllm/model_executor/models/utils.py; vllm-omni model_executor/models/qwen3_omni/qwen3_omni.py
    _rule(
        r"There is no module or parameter named '?(?P<part>[\w.]+)|Unknown weight prefix: (?P<prefix>[\w.]+)",
        "The checkpoint holds a tensor that Qwen3-Omni has no place for: {part}{prefix}. Keep the original model's "
        "names.",
    ),
    # vllm/model_executor/layers/quantization: compressed_tensors/, utils/marlin_utils.py (two spaces, in one of them)
    _rule(
        r"No compressed-tensors compatible scheme|is not divisible +by +(?:min_thread|group_size|weight quantization)",
        "The checkpoint has a part quantized in a way that vllm-omni cannot serve. " + KEEP_BF16,
    ),
    # vllm/model_executor/layers/fused_moe/oracle/*.py
    _rule(
        r"moe_backend='(?P<backend>\w+)' is not supported for (?P<form>\w+) MoE",
        "The deploy configuration was refused: moe_backend {backend} cannot run {form} experts. Set it to auto.",
    ),
    # recorded; pydantic
    _rule(
        r"validation errors? for (?P<what>\w+)\s+(?P<detail>.{0,200})",
        "The deploy configuration was refused by {what}: {detail}",
    ),
    # argparse
    _rule(
        r"unrecognized arguments: (?P<what>.{0,120})",
        "vllm-omni does not know {what}. Is it the version that requirements-serve.txt pins?",
    ),
    # ENOSPC
    _rule(
        r"No space left on device",
        "The disk (or /dev/shm) is full. Make room; compiled kernels are kept in --cache-dir.",
    ),
    # vllm/v1/engine/exceptions.py, vllm/v1/utils.py
    _rule(
        r"EngineDeadError|Engine core process \S+ died unexpectedly",
        "A stage of the server died.",
        retry=True,
    ),
)  # fmt: skip

_ERROR = re.compile(r"(?:^|[\s)\]])((?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt)): (.+)")
_ECHO = re.compile(r"[Ss]ee (?:root cause|stack trace)|initialization failed: Engine core")
_HARMLESS = re.compile(r"\b(?:INFO|WARNING|DEBUG) \d\d-\d\d ")
_SOURCE = re.compile(r"^.*?pid=\d+\) (?:ERROR \S+ \S+ \[[^]]*\] ?)?")


def explain(lines: Iterable[str], exit_code: int | None, memory: str = "") -> Failure:
    """What went wrong, from the last lines of the log and how the process ended.

    `exit_code`: negative is a signal, None when the process still lives. `memory`: the plan's sum, as one sentence.
    """
    said = [_SOURCE.sub("", line) for line in lines if not _HARMLESS.search(line)]
    return known("\n".join(said), memory) or _ended_by(exit_code) or Failure(_last_words(said))


def known(text: str, memory: str = "") -> Failure | None:
    """The first failure that we know and that the text tells of."""
    for rule in RULES:
        if found := rule.pattern.search(text):
            return Failure(_filled(rule.sentence, found, memory), rule.retry)
    return None


def _filled(sentence: str, found: re.Match[str], memory: str) -> str:
    groups = {name: value or "" for name, value in found.groupdict().items()}
    return sentence.format(**groups, memory=f" {memory}" if memory else "").strip()


def _ended_by(exit_code: int | None) -> Failure | None:
    if exit_code is None or exit_code >= 0:
        return None
    if -exit_code == signal.SIGKILL:
        return Failure("The server was killed (signal 9), most likely because the machine's main memory ran out.")
    name = signal.strsignal(-exit_code) or f"signal {-exit_code}"
    return Failure(f"The server was stopped from outside ({name}, signal {-exit_code}).")


def _last_words(said: list[str]) -> str:
    """The first error that is not the echo of another; that is the root of the ones below it."""
    errors = [f"{kind.rpartition('.')[2]}: {what.strip()}" for line in said for kind, what in _ERROR.findall(line)]
    own = [error for error in errors if not _ECHO.search(error)]
    if not (own or errors):
        return "The server ended without saying why; its log tells what it did last."
    return f"The server ended with {(own or errors)[0][:300].rstrip('.')}."
