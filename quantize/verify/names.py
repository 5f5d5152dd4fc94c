"""Whether vLLM would build as quantized exactly the layers that are stored so, by its own names for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from quantize.checkpoint import Checkpoint
from quantize.formats import Layer
from quantize.plan import module
from quantize.verify.alone import check
from quantize.verify.report import Check

_OUTER_NAMES = (
    ("thinker.lm_head", "thinker.language_model.lm_head"),
    ("thinker.model", "thinker.language_model.model"),
    ("talker.model", "talker.language_model.model"),
)
"""How vllm-omni 0.30 names the modules of a checkpoint's tensors."""


def names(result: Checkpoint, found: Mapping[str, Layer]) -> Check:
    section = result.config.get("quantization_config")
    if not isinstance(section, Mapping):
        return Check("names for vLLM", False, "config.json has no quantization_config at its top level")
    if section.get("quant_method") != "compressed-tensors":
        return Check("names for vLLM", True, f"not checked: written by {section.get('quant_method', 'another tool')}")
    ignored = _ignoring([str(rule) for rule in section.get("ignore") or []])
    wrong = [name for name in found if ignored(name)]
    kept = {
        module(name) for name, tensor in result.tensors.items() if name.endswith(".weight") and len(tensor.shape) == 2
    }
    wrong += [name for name in kept - found.keys() if _built_linear(name) and not ignored(name)]
    if result.is_omni:
        wrong += [name for name in result.tensors if not name.startswith(("thinker.", "talker.", "code2wav."))]
    return check("names for vLLM", wrong, "`ignore` matches exactly the BF16 layers under vllm-omni's names",
                  "would be built otherwise than stored")  # fmt: skip


def _ignoring(rules: list[str]) -> Callable[[str], bool]:
    regexes = [re.compile(rule[3:]) for rule in rules if rule.startswith("re:")]
    plain = {outer_name(rule) for rule in rules if not rule.startswith("re:")}
    return lambda name: outer_name(name) in plain or any(regex.match(outer_name(name)) for regex in regexes)


def outer_name(name: str) -> str:
    """A module's name as vllm-omni has it."""
    for ours, theirs in _OUTER_NAMES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _built_linear(name: str) -> bool:
    return not re.search(r"norm|embed|rotary", name.rpartition(".")[2])
