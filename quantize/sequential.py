"""GPTQ and AWQ: llm-compressor's sequential run over the text decoders, fed with what they were really given.

`oneshot(model=model.thinker)` as documented traces an empty graph on transformers 5 and saves uninitialised scales
with success; the decoders alone (`thinker.model`, `talker.model`) trace as they should.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from quantize import engines, samples
from quantize.checkpoint import INDEX
from quantize.errors import QuantizeError
from quantize.plan import Plan
from quantize.progress import Tell, silent

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from compressed_tensors.quantization import QuantizationScheme

Batch = dict[str, Any]
_INPUTS = ("inputs_embeds", "position_ids", "visual_pos_masks", "deepstack_visual_embeds")
_LAYER = r"re:(.*\.)?layers\.\d+\."


def write(
    plan: Plan, folder: Path, scheme: QuantizationScheme, calibration: str, tell: Tell = silent
) -> dict[str, str]:
    """Quantize in memory and save into `folder`; returns which tensor lies in which file.

    Holds the whole model. Raises QuantizeError where a scale was left uncalibrated.
    """
    from llmcompressor.modeling.moe.linearize import linearize_moe
    from llmcompressor.transformers.compression.compressed_tensors_utils import modify_save_pretrained

    model: Any = engines.load(plan.source)
    batches = _batches(plan, model, calibration, tell)
    model.to("cpu")
    linearize_moe(model)
    with _poisoned_scales(), _awq_without_accelerator():
        for prefix, data in batches.items():
            _quantize(plan, model, prefix, data, scheme, tell)
    if plan.source.is_omni:
        modify_save_pretrained(model)
    model.save_pretrained(folder, save_compressed=True)
    return _where(folder)


def _where(folder: Path) -> dict[str, str]:
    from safetensors import safe_open

    if (folder / INDEX).is_file():
        return dict(json.loads((folder / INDEX).read_text())["weight_map"])
    file = next(folder.glob("*.safetensors"))
    with safe_open(file, "pt") as stream:
        return dict.fromkeys(stream.keys(), file.name)


def _batches(plan: Plan, model: Any, calibration: str, tell: Tell) -> dict[str, list[Batch]]:
    """Calibration batches by the prefix of the decoder that they are for; "" is a whole text model."""
    source = plan.source
    read = samples.read(calibration, plan.recipe.samples, source.is_omni, plan.recipe.mix)
    samples.log(read)
    given, tools = read.found, engines.tools_of(source)
    if not source.is_omni:
        return {"": [engines.inputs(source, sample, tools) for sample in given]}
    wanted = [p for p in ("thinker.model.", "talker.model.") if any(n.startswith(p) for n in plan.quantized)]
    found: dict[str, list[Batch]] = {prefix: [] for prefix in wanted}
    for number, sample in enumerate(given, 1):
        with _recorded(model, wanted) as calls:
            engines.answer(model, source, engines.inputs(source, sample, tools), tools, "talker.model." in wanted)
        for prefix in wanted:
            found[prefix].append(_joined(model, prefix, calls[prefix]))
        tell("capture", number, len(given), "")
    return found


@contextmanager
def _recorded(model: Any, prefixes: list[str]) -> Iterator[dict[str, list[Batch]]]:
    """What each decoder is called with while the block runs: the prompt, then one token a call."""
    calls: dict[str, list[Batch]] = {prefix: [] for prefix in prefixes}

    def catcher(prefix: str) -> Callable[..., None]:
        def catch(_: torch.nn.Module, args: tuple[object, ...], named: Batch) -> None:
            calls[prefix].append({name: named.get(name) for name in _INPUTS})

        return catch

    decoders = [model.get_submodule(prefix[:-1]) for prefix in prefixes]
    handles = [
        decoder.register_forward_pre_hook(catcher(prefix), with_kwargs=True)
        for decoder, prefix in zip(decoders, prefixes, strict=True)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _joined(model: Any, prefix: str, calls: list[Batch]) -> Batch:
    """All calls of one answer as the one sequence that they were: [1, tokens, hidden]."""
    import torch

    embeds = torch.cat([call["inputs_embeds"] for call in calls], 1).cpu()
    positions = torch.cat([call["position_ids"][-3:] for call in calls], -1).cpu()
    batch: Batch = {"inputs_embeds": embeds, "position_ids": positions}
    if prefix != "thinker.model.":
        return batch
    # Every batch needs the same keys, so one without pictures gets empty ones.
    levels = len(model.thinker.config.vision_config.deepstack_visual_indexes)
    mask = torch.zeros(embeds.shape[:2], dtype=torch.bool)
    deep = [embeds.new_zeros(0, embeds.shape[-1]) for _ in range(levels)]
    if (first := calls[0])["visual_pos_masks"] is not None:
        seen = first["visual_pos_masks"].cpu()
        mask[:, : seen.shape[1]] = seen
        deep = [level.cpu() for level in first["deepstack_visual_embeds"]]
    return {**batch, "visual_pos_masks": mask, "deepstack_visual_embeds": deep}


class _NoProcessor:
    """oneshot wants a processor as soon as there is a dataset, and does nothing with it."""


def _quantize(plan: Plan, model: Any, prefix: str, data: list[Batch], scheme: QuantizationScheme, tell: Tell) -> None:
    import torch
    from llmcompressor import oneshot

    decoder = model.get_submodule(prefix[:-1]) if prefix else model
    named = decoder.config.name_or_path
    decoder.config.name_or_path = str(plan.source.folder)  # llm-compressor 0.14 reads the config again from there
    layers = {type(layer).__name__ for name, layer in decoder.named_modules() if name.endswith("layers.0")}
    with _told(tell, prefix or plan.source.architecture):
        oneshot(
            model=decoder, processor=_NoProcessor(), recipe=_modifiers(plan, decoder, prefix, scheme),
            dataset=torch.utils.data.DataLoader(data, batch_size=None), num_calibration_samples=len(data),
            sequential_targets=sorted(layers),
        )  # fmt: skip
    decoder.config.name_or_path = named
    _require_scales(decoder)


def _modifiers(plan: Plan, decoder: torch.nn.Module, prefix: str, scheme: QuantizationScheme) -> list[Any]:
    import torch
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    linear = [name for name, layer in decoder.named_modules() if isinstance(layer, torch.nn.Linear)]
    ignore = [name for name in linear if f"{prefix}{name}.weight" not in plan.quantized]
    how: Any = {"config_groups": {"group_0": scheme}, "ignore": ignore}
    if plan.recipe.algorithm.startswith("gptq"):
        return [GPTQModifier(**how)]
    quantizing = QuantizationModifier(**how)
    if plan.recipe.algorithm != "awq":
        return [quantizing]
    mappings = {"mappings": _smoothing(prefix.startswith("talker"))} if plan.source.is_omni else {}
    return [AWQModifier(duo_scaling=True, **mappings), quantizing]


def _smoothing(shared_expert: bool) -> list[Any]:
    """Which layers read which norm. One reader left out, the router for one, and the model is silently another."""
    from llmcompressor.modifiers.transform.awq import AWQMapping

    readers = [r"mlp\.gate$", r"mlp\.experts\.\d+\.gate_proj$", r"mlp\.experts\.\d+\.up_proj$"]
    if shared_expert:
        readers += [r"mlp\.shared_expert_gate$", r"mlp\.shared_expert\.gate_proj$", r"mlp\.shared_expert\.up_proj$"]
    return [
        AWQMapping(f"{_LAYER}input_layernorm$", [rf"{_LAYER}self_attn\.{x}_proj$" for x in "qkv"]),
        AWQMapping(rf"{_LAYER}self_attn\.v_proj$", [rf"{_LAYER}self_attn\.o_proj$"]),
        AWQMapping(f"{_LAYER}post_attention_layernorm$", [_LAYER + reader for reader in readers]),
        AWQMapping(rf"{_LAYER}mlp\.experts\.\d+\.up_proj$", [rf"{_LAYER}mlp\.experts\.\d+\.down_proj$"]),
    ]


def _require_scales(decoder: torch.nn.Module) -> None:
    bad = [
        f"{name}.{kind}"
        for name, layer in decoder.named_modules()
        if getattr(layer, "quantization_scheme", None) is not None
        for kind, value in layer.named_parameters(recurse=False)
        if kind.endswith("scale") and not bool((value.float().isfinite() & (value.float() > 0)).all())
    ]
    if bad:
        raise QuantizeError(
            f"{len(bad)} scales were left uncalibrated, {bad[0]} for one; give more and longer calibration samples."
        )


@contextmanager
def _poisoned_scales() -> Iterator[None]:
    """Fill every scale with NaN as calibration starts: they start as whatever memory held, which may look plausible."""
    from llmcompressor.core import LifecycleCallbacks, active_session

    original = LifecycleCallbacks.event

    def event(_: object, kind: Any, **named: Any) -> Any:
        if kind.value == "calibration_start":
            for layer in active_session().state.model.modules():
                if getattr(layer, "quantization_scheme", None) is not None:
                    for name, value in layer.named_parameters(recurse=False):
                        if name.endswith("scale") and not value.is_meta:
                            value.data.fill_(float("nan"))
        return original(kind, **named)

    LifecycleCallbacks.event = classmethod(event)  # type: ignore[arg-type]
    try:
        yield
    finally:
        LifecycleCallbacks.event = original


@contextmanager
def _awq_without_accelerator() -> Iterator[None]:
    """AWQModifier pins its cached activations, which torch refuses where there is no accelerator."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    original = IntermediatesCache.pin_memory if hasattr(IntermediatesCache, "pin_memory") else None
    if original is None or torch.accelerator.is_available():
        yield
        return
    IntermediatesCache.pin_memory = lambda self, *args, **named: None
    try:
        yield
    finally:
        IntermediatesCache.pin_memory = original


@contextmanager
def _told(tell: Tell, what: str) -> Iterator[None]:
    """llm-compressor's only live signal is tqdm: read "(3/49): Calibrating" off its bars."""
    import llmcompressor.pipelines.sequential.pipeline as pipeline

    original: Any = pipeline.tqdm

    class Bar(original):  # type: ignore[misc]
        def update(self, n: float = 1) -> object:
            shown = super().update(n)
            tell("quantize", *_step(str(self.desc)), f"{what} {self.desc}")
            return shown

    pipeline.tqdm = Bar
    try:
        yield
    finally:
        pipeline.tqdm = original


def _step(description: str) -> tuple[int, int]:
    done, _, total = description.partition(")")[0].lstrip("(").partition("/")
    return (int(done) - 1, int(total)) if done.isdigit() and total.isdigit() else (0, 1)
