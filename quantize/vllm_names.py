"""Modules as vLLM-Omni 0.30 names them, which is not as checkpoints name their tensors."""

from __future__ import annotations

import re

_OUTER_NAMES = (
    ("thinker.lm_head", "thinker.language_model.lm_head"),
    ("thinker.model", "thinker.language_model.model"),
    ("talker.model", "talker.language_model.model"),
)


def outer_name(name: str) -> str:
    """A module's name as vllm-omni has it."""
    for ours, theirs in _OUTER_NAMES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def built_linear(name: str) -> bool:
    """Whether a module with a weight of two dimensions is a linear layer there."""
    return not re.search(r"norm|embed|rotary", name.rpartition(".")[2])
