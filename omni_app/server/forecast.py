"""On which GPUs a checkpoint could be served that does not exist yet: the plan's own arithmetic with expected sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from omni_app.hardware import GIB, Fact, Gpu
from omni_app.server import fitting
from omni_app.server.checkpoint import Checkpoint
from omni_app.server.fitting import Wishes

_PARTS = {
    "thinker_attention": "attention", "thinker_experts": "experts", "talker_attention": "talker",
    "talker_experts": "talker", "talker_shared_experts": "talker",
}  # fmt: skip
"""The quantizer's names of what it can quantize, and ours, which are coarser."""
_WHY = "as sold; what a driver shows"
# GiB that the driver shows, with nothing else on the card.
CARDS = tuple(
    Gpu(name, Fact(int(gib * GIB), _WHY), Fact(int(gib * GIB), _WHY), Fact(capability, _WHY), Fact(unified, _WHY))
    for name, gib, capability, unified in (
        ("24 GB (RTX 4090)", 23.5, (8, 9), False),
        ("32 GB (RTX 5090)", 31.3, (12, 0), False),
        ("48 GB (L40S)", 44.5, (8, 9), False),
        ("80 GB (H100)", 79.2, (9, 0), False),
        ("96 GB (RTX PRO 6000)", 95.0, (12, 0), False),
        ("128 GB shared (DGX Spark)", 119.6, (12, 1), True),
    )
)


@dataclass(frozen=True, slots=True)
class Forecast:
    gpu: str
    speech: bool
    users: int
    """Conversations at full length that have room at once; 0 where not even one has."""


def forecast(
    now: Checkpoint, after: Mapping[str, int], form: str, here: Sequence[Gpu], wishes: Wishes
) -> list[Forecast]:
    """Each GPU of this machine, and cards as they are sold.

    after: bytes of each part that will be quantized, by the quantizer's names; form: how (nvfp4, fp8, ...).
    """
    then = expected(now, after, form)
    mine = [dataclasses.replace(gpu, name=f"{gpu.name} (here)") for gpu in here]
    return [_on(gpu, then, wishes) for gpu in (*mine, *CARDS)]


def expected(now: Checkpoint, after: Mapping[str, int], form: str) -> Checkpoint:
    """The checkpoint as it will be."""
    sizes: dict[str, int] = {}
    for name, size in after.items():
        sizes[_PARTS[name]] = sizes.get(_PARTS[name], 0) + size
    changed = {
        name: dataclasses.replace(now.parts[name], size=size, formats=(form, *now.parts[name].formats))
        for name, size in sizes.items()
    }
    return dataclasses.replace(now, parts={**now.parts, **changed})


def _on(gpu: Gpu, checkpoint: Checkpoint, wishes: Wishes) -> Forecast:
    """With speech where that fits, or else without."""
    speech = wishes.speech and checkpoint.speaks
    found = fitting.fit([gpu], checkpoint, dataclasses.replace(wishes, speech=speech))
    if found is None and speech:
        speech = False
        found = fitting.fit([gpu], checkpoint, dataclasses.replace(wishes, speech=False))
    return Forecast(gpu.name, speech and found is not None, found.contexts if found else 0)
