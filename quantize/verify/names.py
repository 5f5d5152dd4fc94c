"""Whether vLLM would build as quantized exactly the layers that are stored so, by its own names for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from quantize import modelopt
from quantize.checkpoint import Checkpoint
from quantize.formats import Layer
from quantize.plan import module
from quantize.verify.alone import check
from quantize.verify.report import Check
from quantize.vllm_names import built_linear, outer_name

_OTHERWISE = "would be built otherwise than stored"


def names(result: Checkpoint, found: Mapping[str, Layer]) -> Check:
    if said := modelopt.declared(result):
        return check(
            "names for vLLM",
            modelopt.misbuilt(result, said, found),
            f"the excluded modules of {said.where} are exactly the BF16 layers",
            "would be built otherwise than stored",
        )
    section = result.config.get("quantization_config")
    if not isinstance(section, Mapping):
        return Check("names for vLLM", False, "config.json has no quantization_config at its top level")
    if section.get("quant_method") != "compressed-tensors":
        return Check("names for vLLM", True, f"not checked: written by {section.get('quant_method', 'another tool')}")
    ignored, targeted = _matching(section.get("ignore")), _targeted(section)
    wrong = [name for name in found if ignored(name) or not targeted(name)]
    kept = {
        module(name) for name, tensor in result.tensors.items() if name.endswith(".weight") and len(tensor.shape) == 2
    }
    wrong += [name for name in kept - found.keys() if built_linear(name) and targeted(name) and not ignored(name)]
    if result.is_omni:
        wrong += [name for name in result.tensors if not name.startswith(("thinker.", "talker.", "code2wav."))]
    return check("names for vLLM", wrong, "`ignore` matches exactly the BF16 layers under vllm-omni's names",
                  _OTHERWISE)  # fmt: skip


def _targeted(section: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether a group of config.json is for a layer: by its class, which is Linear, or by its name."""
    groups = section.get("config_groups")
    held = [group for group in groups.values() if isinstance(group, Mapping)] if isinstance(groups, Mapping) else []
    targets = [target for group in held for target in group.get("targets") or []]
    return (lambda name: True) if "Linear" in targets else _matching(targets)


def _matching(named: object) -> Callable[[str], bool]:
    rules = [str(rule) for rule in named] if isinstance(named, list) else []
    regexes = [re.compile(rule[3:]) for rule in rules if rule.startswith("re:")]
    plain = {outer_name(rule) for rule in rules if not rule.startswith("re:")}
    return lambda name: outer_name(name) in plain or any(regex.match(outer_name(name)) for regex in regexes)
