"""What range each layer's input really takes while the unquantized model answers; the talker hears the true thinker."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize import engines, samples
from quantize.errors import CalibrationUnusable
from quantize.plan import Plan, module
from quantize.progress import Tell, silent

if TYPE_CHECKING:
    import torch

_EXPERTS = re.compile(r"(.*\.mlp\.experts)\.\d+\.")
_FILE = "amax.json"


def amax(plan: Plan, calibration: str, store: Path, tell: Tell = silent) -> dict[str, float]:
    """Greatest absolute input of each module that will be quantized; from `store` if it was captured before.

    Raises CalibrationUnusable where samples are too few, or never reached some layer.
    """
    recipe = plan.recipe
    key = {
        "source": str(plan.source.folder), "samples": recipe.samples, "mix": recipe.mix, "calibration": calibration,
        "set": samples.state(calibration),
    }  # fmt: skip
    found = _stored(store / _FILE, key)
    needed = {module(name) for name in plan.quantized}
    if not needed <= found.keys():
        found = _capture(plan, calibration, store, tell)
        store.mkdir(parents=True, exist_ok=True)
        (store / _FILE).write_text(json.dumps({"key": key, "amax": found}))
    if silent_layers := sorted(name for name in needed if not found.get(name)):
        raise CalibrationUnusable(
            f"{len(silent_layers)} layers were never given an input, {silent_layers[0]} for one; "
            "give more and longer calibration samples."
        )
    return found


def _stored(path: Path, key: dict[str, Any]) -> dict[str, float]:
    """Empty where nothing was captured, or a full disk cut it off."""
    try:
        held = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return dict(held["amax"]) if held["key"] == key else {}


def _capture(plan: Plan, calibration: str, store: Path, tell: Tell) -> dict[str, float]:
    source = plan.source
    given = samples.read(calibration, plan.recipe.samples, source.is_omni, plan.recipe.mix)
    samples.log(given)
    tell("capture", 0, len(given.found), "loading the model")
    model, tools = engines.load(source), engines.tools_of(source)
    speak = any(name.startswith("talker.") for name in plan.quantized)
    with watched(model, {module(name) for name in plan.quantized}) as peaks:
        for number, sample in enumerate(given.found, 1):
            engines.answer(model, source, engines.inputs(source, sample, tools), tools, speak)
            tell("capture", number, len(given.found), "")
    return {name: float(peak) for name, peak in peaks.items()}


@contextmanager
def watched(model: torch.nn.Module, names: set[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Gather the greatest absolute input of each named module while the block runs.

    All experts are shown every token, as llm-compressor does: a rarely chosen expert has a range too.
    """
    peaks: dict[str, torch.Tensor] = {}
    owners = {match[1] for name in names if (match := _EXPERTS.match(name))}
    handles = []
    for name, layer in model.named_modules():
        if name in owners and hasattr(layer, "gate_up_proj"):
            handles.append(layer.register_forward_pre_hook(_expert_hook(name, layer, peaks)))
        elif name in names:
            handles.append(layer.register_forward_pre_hook(_linear_hook(name, peaks)))
    try:
        yield peaks
    finally:
        for handle in handles:
            handle.remove()


def _note(peaks: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> None:
    if not value.numel():
        return
    peak = value.detach().abs().amax().float()
    peaks[name] = peak if name not in peaks else peaks[name].maximum(peak)


def _linear_hook(name: str, peaks: dict[str, torch.Tensor]) -> Callable[..., None]:
    def hook(layer: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        _note(peaks, name, args[0])

    return hook


def _expert_hook(name: str, layer: Any, peaks: dict[str, torch.Tensor]) -> Callable[..., None]:
    """layer: all experts in one module, gate_up_proj [expert, 2 * intermediate, hidden], as transformers 5 has them."""
    import torch

    def hook(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        tokens = args[0]
        for expert in range(layer.gate_up_proj.shape[0]):
            gate, up = torch.nn.functional.linear(tokens, layer.gate_up_proj[expert]).chunk(2, dim=-1)
            _note(peaks, f"{name}.{expert}.gate_proj", tokens)
            _note(peaks, f"{name}.{expert}.up_proj", tokens)
            _note(peaks, f"{name}.{expert}.down_proj", layer.act_fn(gate) * up)

    return hook
