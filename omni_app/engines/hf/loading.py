"""Qwen3-Omni into memory: checked to fit first, quantized on the way where asked, its bytes counted per part."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import Qwen3OmniMoeConfig, Qwen3OmniMoeForConditionalGeneration

from omni_app import hardware
from omni_app.engines.hf import sizes
from omni_app.engines.hf.folder import Note
from omni_app.engines.hf.prompt import Reader
from omni_app.engines.hf.sizes import Precision, Sizes
from omni_app.errors import CheckpointUnusable, DoesNotFit

log = logging.getLogger(__name__)

_ROOM = 3e9
"""Bytes beside the weights: while loading one layer's experts in BF16, apart and put together; then the KV cache."""


@dataclass(frozen=True, slots=True)
class Loaded:
    model: Any
    reader: Reader
    voices: tuple[str, ...]
    """Empty when the model does not speak."""
    before: Sizes
    """Bytes in BF16."""
    after: Sizes
    """Bytes as they are in memory now."""
    device: str
    """As a person calls it."""


def load(folder: Path, precision: Precision, talker: bool, note: Note) -> Loaded:
    """Blocks for as long as the weights take. Raises CheckpointUnusable or DoesNotFit."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = _config(folder, talker)
    shapes = list(_shapes(config))
    _check_room(sizes.estimate(shapes, precision), precision, device)
    note(f"Loading {folder.name} ({precision}).")
    reader = Reader(folder)
    model = _model(folder, config, precision, device)
    before, after = sizes.estimate(shapes, "bf16"), in_memory(model)
    log.info("weights: %s", sizes.in_words(before, after))
    voices = tuple(config.talker_config.speaker_id or ()) if config.enable_audio_output else ()
    name = torch.cuda.get_device_name() if device.type == "cuda" else "this machine's processor"
    return Loaded(model, reader, voices, before, after, name)


def in_memory(model: Any) -> Sizes:
    """Bytes by part that the parameters take."""
    held: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        held[sizes.part_of(name)] += _bytes(parameter)
    return held


def _bytes(parameter: Any) -> int:
    if getattr(parameter, "quant_state", None) is None:
        return int(parameter.numel() * parameter.element_size())
    from omni_app.engines.hf.four_bit import packed_bytes

    return packed_bytes(parameter)


def _config(folder: Path, talker: bool) -> Any:
    try:
        config = Qwen3OmniMoeConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointUnusable(f"config.json in {folder} cannot be used; download that file again.") from error
    config.enable_audio_output = bool(talker and config.enable_audio_output)
    return config


def _shapes(config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    with torch.device("meta"):
        skeleton = Qwen3OmniMoeForConditionalGeneration(config)
    return ((name, tuple(parameter.shape)) for name, parameter in skeleton.named_parameters())


def _check_room(needed: Sizes, precision: Precision, device: torch.device) -> None:
    """Raises DoesNotFit, with the sum."""
    if device.type == "cuda":
        free, where = torch.cuda.mem_get_info()[0], "free on the GPU"
    else:
        free, where = hardware.detect().ram_available.value, "of memory free"
    total = sum(needed.values())
    if total + _ROOM > free:
        way_out = "free some, or leave the voice out (OMNI_TRANSFORMERS_TALKER=false)"
        if precision not in ("nf4", "fp4"):
            way_out = "OMNI_TRANSFORMERS_PRECISION=nf4 takes about a third"
        raise DoesNotFit(
            f"In {precision} the model needs {total / 1e9:.1f} GB and {_ROOM / 1e9:g} GB to work in, and only "
            f"{free / 1e9:.1f} GB are {where}: {way_out}."
        )


def _model(folder: Path, config: Any, precision: Precision, device: torch.device) -> Any:
    more: dict[str, Any] = {}
    if precision in ("nf4", "fp4"):
        from omni_app.engines.hf.four_bit import WithExperts

        more["quantization_config"] = WithExperts(precision)
    try:
        model, found = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
            folder, config=config, dtype=torch.float32 if precision == "fp32" else torch.bfloat16,
            device_map={"": device}, output_loading_info=True, **more,
        )  # fmt: skip
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise DoesNotFit(
            f"The GPU's memory was full before {folder.name} was loaded; end what else uses it."
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        log.exception("the model could not be loaded")
        raise CheckpointUnusable(
            f"The weights in {folder} cannot be loaded ({str(error).splitlines()[0][:200]}); download the model again."
        ) from error
    if absent := sorted(found["missing_keys"]):
        raise CheckpointUnusable(f"{len(absent)} weights are not in {folder}, {absent[0]} for one; download it again.")
    if config.enable_audio_output:
        # The talker asks its own config for the thinker's window of sound when a prompt has a picture and a sound.
        model.talker.config.audio_config = config.thinker_config.audio_config
    return model.eval()
