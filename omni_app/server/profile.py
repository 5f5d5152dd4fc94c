"""From hardware, checkpoint and wishes to a deploy file with a reason beside every value. Nothing is read or run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_app.errors import BadRequest, DoesNotFit
from omni_app.hardware import GIB, Fact, Gpu, Machine
from omni_app.server import budget, deploy, kernels
from omni_app.server.budget import StageMemory
from omni_app.server.checkpoint import Checkpoint
from omni_app.server.fitting import Fit, Wishes, fit, refusal

__all__ = ["FLAGS", "Plan", "Wishes", "environment", "plan"]

FLAGS = ("--omni", "--stage-init-timeout", "1800", "--init-timeout", "3600")
"""The defaults, 300 and 600 s, are too short for a first start, which compiles: 257 to 500 s on an H100."""
_GRAPH_RESERVE = 2 * GIB  # vLLM-Omni's own figures, engine/stage_admission.py
_ADMISSION_MARGIN = 2 * GIB + GIB // 8  # theirs, and a share of what the driver keeps: they count without that
_OTHERS_BYTES = 1.5 * GIB


@dataclass(frozen=True, slots=True)
class Plan:
    """How to start the server. `text` is what to write to the deploy file."""

    deploy: Mapping[str, Any]
    text: str
    stages: tuple[StageMemory, ...]
    gpus: tuple[Gpu, ...]
    """Those of the machine, which `stages` name by index."""
    contexts: int
    """Conversations at full length that have room at once."""
    kernel: Fact[str]
    parallel_start: Fact[bool]
    """Whether vLLM-Omni would admit starting all stages at once (parallel_stage_init)."""
    switches: tuple[Fact[str], ...]
    """Of fast_start.py; none for a start exactly as `vllm serve` does it."""
    warnings: tuple[str, ...]
    flags: tuple[str, ...] = FLAGS
    """For `vllm serve MODEL --deploy-config FILE`, besides where to listen."""

    def table(self) -> list[str]:
        """The memory arithmetic: a header, one line for each stage, one for each GPU."""
        rows = [f"{'GiB':10}{'GPU':>6}{'weights':>9}{'work':>7}{'KV':>7}{'sum':>7}"]
        for stage in self.stages:
            where = ",".join(map(str, stage.devices))
            cells = "".join(f"{part / GIB:7.1f}" for part in (stage.work, stage.kv, stage.total))
            rows.append(f"{stage.name:10}{where:>6}{stage.weights / GIB:9.1f}{cells}")
        for index, gpu in enumerate(self.gpus):
            taken = sum(stage.total for stage in self.stages if index in stage.devices)
            if taken:
                rows.append(f"GPU {index}: {taken / GIB:.1f} of {budget.usable(gpu) / GIB:.1f} usable ({gpu.name})")
        return rows

    @property
    def memory(self) -> str:
        """The same as one sentence."""
        shares = ", ".join(f"{stage.name} {stage.total / GIB:.1f}" for stage in self.stages)
        usable = " + ".join(f"{budget.usable(self.gpus[index]) / GIB:.1f}" for index in self._used)
        return f"Planned: {shares} of {usable} GiB that can be used."

    @property
    def _used(self) -> list[int]:
        return sorted({index for stage in self.stages for index in stage.devices})


def environment(cache: Path, largest_clip_mb: int) -> dict[str, str]:
    """Variables for the server; what it compiles is kept below `cache`, so that the next start is a warm one."""
    return {
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "torchinductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "FLASHINFER_WORKSPACE_BASE": str(cache / "flashinfer"),
        "CUDA_CACHE_PATH": str(cache / "cuda"),
        "PYTHONDONTWRITEBYTECODE": "",  # without byte code each process imports for 20 s longer; 40 s of a warm start
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the order in which nvidia-smi counted them
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # would be compiled at start, and requests with a seed never use it
        "VLLM_ALLREDUCE_USE_FLASHINFER": "0",  # tensor parallel alone: see `_together` in deploy.py
        "VLLM_MAX_AUDIO_CLIP_FILESIZE_MB": str(largest_clip_mb),  # else 25, and the sound of a larger clip is refused
        "HF_HUB_OFFLINE": "1",  # the model is a folder
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }


def plan(machine: Machine, checkpoint: Checkpoint, wishes: Wishes) -> Plan:
    """The best way to serve this checkpoint here. Raises DoesNotFit with the sum, BadRequest for impossible wishes."""
    _check(machine, checkpoint, wishes)
    found = fit(machine.gpus, checkpoint, wishes)
    if found is None:
        raise DoesNotFit(refusal(machine.gpus, checkpoint, wishes))
    used = [machine.gpus[index] for index in sorted({index for stage in found.stages for index in stage.devices})]
    kernel = _kernel(checkpoint, used[0])
    said = "speech" if wishes.speech else "text only"
    users = f"{wishes.users} users" if wishes.users > 1 else "one user"
    parallel = _parallel_start(found, machine.gpus)
    switches = tuple(_switches(parallel, found, wishes.users)) if wishes.fast_start else ()
    names = {switch.value for switch in switches}
    nodes = deploy.tree(
        checkpoint, found.stages, found.effort, wishes.context_tokens, wishes.users, machine.gpus, names
    )
    head = [
        f"Qwen3-Omni, {checkpoint.thinker_format.upper()} thinker, on {_counted(gpu.name for gpu in used)}.",
        f"For {users}, {wishes.context_tokens:,} tokens of context, {said}.",
        f"Kernel: {kernel.value} ({kernel.reason}).",
        *(f"Quick start: {switch.value} ({switch.reason})." for switch in switches),
    ]
    return Plan(
        deploy.data(nodes), deploy.text(nodes, head), found.stages, machine.gpus, found.contexts, kernel,
        parallel, switches, tuple(_warnings(machine, checkpoint, wishes, found)),
    )  # fmt: skip


def _check(machine: Machine, checkpoint: Checkpoint, wishes: Wishes) -> None:
    if not machine.gpus:
        raise DoesNotFit(
            f"There is no CUDA device here ({machine.gpus_reason}). Start the server on a machine with an NVIDIA GPU "
            "and set OMNI_ENDPOINT to it."
        )
    for gpu in machine.gpus:
        capability = gpu.compute_capability.value
        if capability is not None and capability < kernels.OLDEST:
            raise DoesNotFit(
                f"{gpu.name} has compute capability {capability[0]}.{capability[1]}; Qwen3-Omni on vLLM needs "
                "8.0 (Ampere) or newer. Hide that GPU with CUDA_VISIBLE_DEVICES, or use another machine."
            )
    if wishes.speech and not checkpoint.speaks:
        raise BadRequest("This model has no voice (no talker, or enable_audio_output is off); ask for --no-speech.")
    if wishes.context_tokens > checkpoint.thinker.positions:
        raise BadRequest(
            f"The longest context of this model is {checkpoint.thinker.positions:,} tokens; "
            f"lower --context from {wishes.context_tokens:,}."
        )


def _kernel(checkpoint: Checkpoint, gpu: Gpu) -> Fact[str]:
    capability = gpu.compute_capability.value
    if capability is None:
        return Fact("unknown", f"{gpu.name} does not tell its compute capability")
    return kernels.expected(checkpoint.thinker_format, capability)


def _parallel_start(found: Fit, gpus: Sequence[Gpu]) -> Fact[bool]:
    for index, gpu in enumerate(gpus):
        here = [stage for stage in found.stages if index in stage.devices]
        total = gpu.memory_total.value
        graphs = sum(stage.stage != budget.CODE2WAV_STAGE or found.effort.code2wav_graphs for stage in here)
        claimed = sum(int(deploy.utilization(stage, gpus) * total) for stage in here)
        needed = claimed + graphs * _GRAPH_RESERVE + _ADMISSION_MARGIN
        if here and needed > total:
            return Fact(False, f"vLLM-Omni counts {needed / GIB:.1f} GiB for that on GPU {index}, of {total / GIB:.1f}")
    return Fact(True, "all stages and vLLM-Omni's reserves fit at once")


def _switches(parallel: Fact[bool], found: Fit, users: int) -> Iterator[Fact[str]]:
    """Measured on one H100 (benchmarks/results), to ready: with empty caches 378 s with none of the first three, 257 to
    323 s without `share-layers`, 211 s with all but `crowd-graphs`; the second time 119 s without `tokenizer-once` and
    `early-inputs`, 86 s with them. `crowd-graphs` and `no-states` were measured on one H200."""
    speaks = len(found.stages) > 1
    if parallel.value and speaks:
        yield Fact("parallel", f"the stages import and load at the same time; {parallel.reason}")
        yield Fact("no-locks", "they compile at the same time too: no stage's KV size is measured, so none must wait")
        yield Fact("warm-up-experts", "some 20 s at a first start, or a second at the first prompt of each length")
    yield Fact("share-layers", "layers that are the same are compiled once; the thinker's 48 took two minutes")
    if speaks and found.effort.prompt_graphs:
        yield Fact("small-predictor", "else it is compiled for each graph of the talker, also those for prompts")
    if speaks and found.effort.code2wav_graphs and users > 1:
        yield Fact("crowd-graphs", "2 s more, and the first sound of 4 to 16 users comes 20 to 90 ms earlier")
    if not speaks:
        yield Fact("no-states", "states that only a talker would read cost up to a tenth of the tokens/s")
    yield Fact("tokenizer-once", "8 s of each stage were spent on others, with the same outputs")
    yield Fact("early-inputs", "the server waited 26 s for that; it passes while stages load")
    yield Fact(
        "no-sampler-warm-up",
        "99 s less for each stage that samples, cold; our warm-up compiles what 1, 2 and 16 users need",
    )
    yield Fact("no-request-tables", "the log would grow by 30 lines for each answer; /metrics counts all the same")


# --- telling


def _counted(names: Iterable[str]) -> str:
    """Like "2 x NVIDIA L4 and NVIDIA L40S"."""
    return " and ".join(f"{count} x {name}" if count > 1 else name for name, count in Counter(names).items())


def _warnings(machine: Machine, checkpoint: Checkpoint, wishes: Wishes, found: Fit) -> Iterator[str]:
    if found.contexts < wishes.users:
        yield (
            f"There is room for {found.contexts} of {wishes.users} conversations at their full "
            f"{wishes.context_tokens:,} tokens; with shorter ones all run at once, else some wait."
        )
    if not found.effort.code2wav_graphs:
        slower = "and speech is made without CUDA graphs, both slower" if wishes.speech else "which is slower"
        yield f"Memory is short: prompts are read in smaller steps{' ' if wishes.speech else ', '}{slower}."
    for index, gpu in enumerate(machine.gpus):
        others = gpu.memory_total.value - gpu.memory_free.value
        if not any(index in stage.devices for stage in found.stages):
            yield f"GPU {index} ({gpu.name}) is not used; a second server on it would serve as many users again."
        elif gpu.unified.value:
            yield "GPU and processor share one memory: start the server before other large programs."
        elif others > _OTHERS_BYTES:
            yield f"Other programs hold {others / GIB:.1f} GiB of GPU {index}; the plan leaves that to them."
        if gpu.compute_capability.value is None:
            yield f"The compute capability of {gpu.name} is not known; it must be 8.0 or newer."
    size = sum(part.size for part in checkpoint.parts.values())
    if machine.ram_available.value < size and not machine.gpus[0].unified.value:
        yield f"Each stage reads all {size / GIB:.0f} GiB of files, more than free memory can cache: starts are slow."
