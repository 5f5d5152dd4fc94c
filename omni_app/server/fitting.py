"""Where the stages go: the layout that holds the users asked for, or the sum that shows why none does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from omni_app.errors import BadRequest
from omni_app.hardware import GIB, Gpu
from omni_app.server import budget
from omni_app.server.budget import FULL, SPARING, Effort, Layout, StageMemory
from omni_app.server.checkpoint import Checkpoint

LEAST_CONTEXT = 2048
MOST_USERS = 256
"""vLLM sizes buffers by it, which the memory arithmetic does not count, and wants no more users than batched tokens."""
_NVFP4_BITS = 4.5  # four, and one 8-bit scale for 16 weights


@dataclass(frozen=True, slots=True)
class Wishes:
    speech: bool = True
    users: int = 8
    """Conversations that may run at once."""
    context_tokens: int = 16384
    """Longest conversation, its answers included. A long clip or large picture takes up to 12 544."""
    fast_start: bool = True
    """Start with the switches of fast_start.py that pay here; without, exactly as `vllm serve` does."""

    def __post_init__(self) -> None:
        if self.users < 1:
            raise BadRequest("There must be at least one user (--users 1).")
        if self.users > MOST_USERS:
            raise BadRequest(f"One server takes at most {MOST_USERS} users at once; start several for more.")
        if self.context_tokens < LEAST_CONTEXT:
            raise BadRequest(f"A context below {LEAST_CONTEXT:,} tokens leaves no room to talk; raise --context.")


@dataclass(frozen=True, slots=True)
class Fit:
    stages: tuple[StageMemory, ...]
    effort: Effort
    contexts: int


def fit(gpus: Sequence[Gpu], checkpoint: Checkpoint, wishes: Wishes) -> Fit | None:
    """The first way with room for half the users at full length (few conversations get there), or else the one with
    the most room; None when not even one fits."""
    best: Fit | None = None
    for stages, effort in _ways(gpus, checkpoint, wishes):
        contexts = min(budget.contexts_that_fit(stages, gpus), wishes.users)
        if contexts > (best.contexts if best else 0):
            filled = tuple(dataclasses.replace(stage, contexts=contexts) for stage in stages)
            best = Fit(filled, effort, contexts)
        if 2 * contexts >= wishes.users:
            break
    return best


def _ways(gpus: Sequence[Gpu], checkpoint: Checkpoint, wishes: Wishes) -> Iterator[tuple[list[StageMemory], Effort]]:
    for layout in _layouts(gpus, wishes.speech):
        if checkpoint.thinker.heads % len(layout.thinker):
            continue
        for effort in (FULL, SPARING):
            yield budget.stages(checkpoint, layout, effort, wishes.context_tokens, wishes.users), effort


def _layouts(gpus: Sequence[Gpu], speech: bool) -> Iterator[Layout]:
    """Thinker on one GPU and the voice on another where there is one; then the thinker over two, and over four."""
    order = sorted(range(len(gpus)), key=lambda index: -budget.usable(gpus[index]))
    for share in (1, 2, 4):
        if share <= len(order):
            voice = order[share] if share < len(order) else order[share - 1]
            nvlinked = all(gpus[index].compute_capability.value in budget.NVLINKED for index in order[:share])
            yield Layout(tuple(sorted(order[:share])), voice if speech else None, nvlinked)


def refusal(gpus: Sequence[Gpu], checkpoint: Checkpoint, wishes: Wishes) -> str:
    """The sum of the most sparing way for one user, and what would help."""
    *_, (stages, _) = _ways(gpus, checkpoint, dataclasses.replace(wishes, users=1))
    one = [dataclasses.replace(stage, contexts=1) for stage in stages]
    terms = " + ".join(
        f"{s.name} {s.total / GIB:.1f} (weights {s.weights / GIB:.1f}, work {s.work / GIB:.1f}, KV {s.kv / GIB:.1f})"
        for s in one
    )
    room = "; ".join(
        f"{gpu.name} has {budget.usable(gpu) / GIB:.1f} to use ({gpu.memory_free.value / GIB:.1f} free, "
        f"{(budget.KEPT_FREE_UNIFIED if gpu.unified.value else budget.KEPT_FREE) / GIB:.1f} kept for the system)"
        for gpu in gpus
    )
    shared = f" (on each of the {len(one[0].devices)} GPUs that share the thinker)" if len(one[0].devices) > 1 else ""
    return (
        f"This does not fit. In GiB, for one user with {wishes.context_tokens:,} tokens{shared}: {terms} "
        f"= {sum(stage.total for stage in one) / GIB:.1f}; {room}. {_ways_out(gpus, checkpoint, wishes)}"
    )


def _ways_out(gpus: Sequence[Gpu], checkpoint: Checkpoint, wishes: Wishes) -> str:
    def would(**changed: Any) -> bool:
        return fit(gpus, checkpoint, dataclasses.replace(wishes, **changed)) is not None

    def shorter(**changed: Any) -> int | None:
        whole = wishes.context_tokens
        contexts = [whole // divisor for divisor in (2, 4, 8) if whole // divisor >= LEAST_CONTEXT]
        return next((tokens for tokens in contexts if would(context_tokens=tokens, **changed)), None)

    ways: list[str] = []
    if context := shorter():
        ways.append(f"a context of {context:,} tokens (--context {context})")
    if wishes.speech and would(speech=False):
        ways.append("text only (--no-speech)")
    if wishes.speech and not ways and (context := shorter(speech=False)):
        ways.append(f"text only and a context of {context:,} tokens (--no-speech --context {context})")
    freed = [dataclasses.replace(gpu, memory_free=gpu.memory_total) for gpu in gpus]
    if fit(freed, checkpoint, wishes) is not None:
        ways.append("ending the other programs on the GPU")
    if checkpoint.thinker_format in ("bf16", "fp16", "fp8"):
        if fit(gpus, _as_nvfp4(checkpoint), wishes) is not None:
            ways.append("an NVFP4 thinker, which `python -m quantize` makes")
        elif not ways and fit(gpus, _as_nvfp4(checkpoint), dataclasses.replace(wishes, speech=False)) is not None:
            ways.append("an NVFP4 thinker (`python -m quantize` makes one) and text only (--no-speech)")
    return f"It would fit with {', or '.join(ways)}." if ways else "Use a GPU with more memory, or several."


def _as_nvfp4(checkpoint: Checkpoint) -> Checkpoint:
    bits = 8 if checkpoint.thinker_format == "fp8" else 16
    smaller = {
        name: dataclasses.replace(part, size=int(part.size * _NVFP4_BITS / bits))
        for name, part in checkpoint.parts.items()
        if name in ("experts", "attention")
    }
    return dataclasses.replace(checkpoint, parts={**checkpoint.parts, **smaller})
