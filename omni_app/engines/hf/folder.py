"""The model's folder: found on this machine or fetched from the hub, and looked at before anything heavy starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from omni_app.errors import AssetUnavailable, CheckpointUnusable, EngineUnavailable

EXAMPLE = "Qwen/Qwen3-Omni-30B-A3B-Instruct"
Note = Callable[[str], None]


def find(model: str, note: Note) -> Path:
    """The folder of `model`, a path or a hub's owner/name. Raises EngineUnavailable."""
    if not model:
        raise EngineUnavailable(
            f"No model is named: set OMNI_TRANSFORMERS_MODEL to the folder of Qwen3-Omni, or to {EXAMPLE} to fetch it."
        )
    folder = Path(model).expanduser()
    if not folder.is_dir():
        folder = _fetched(model, note)
    _check(folder)
    return folder


def _fetched(model: str, note: Note) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    note(f"Fetching {model}, or finding it in the hub's cache; the published one has 70 GB.")
    try:
        return Path(snapshot_download(model))
    except HFValidationError as error:
        raise AssetUnavailable(f"There is no folder {model}; set OMNI_TRANSFORMERS_MODEL to one.") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise AssetUnavailable(
            f"{model} is no folder here and cannot be fetched from the hub; give the folder of a downloaded model "
            f"(`hf download {EXAMPLE} --local-dir FOLDER`)."
        ) from error


def _check(folder: Path) -> None:
    try:
        config = json.loads((folder / "config.json").read_bytes())
        kind = config.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointUnusable(f"{folder} is not a model folder: it has no readable config.json.") from error
    if kind != "qwen3_omni_moe":
        raise CheckpointUnusable(
            f"{folder} holds a model of type {kind or 'unknown'}, not Qwen3-Omni (qwen3_omni_moe); choose another."
        )
    if config.get("quantization_config") or (folder / "hf_quant_config.json").exists():
        raise CheckpointUnusable(
            f"{folder} is quantized already, and transformers cannot load such a Qwen3-Omni: serve it with vLLM-Omni, "
            "or give the original BF16 folder and set OMNI_TRANSFORMERS_PRECISION."
        )
    if not any(folder.glob("*.safetensors")):
        raise CheckpointUnusable(f"There are no weights in {folder}: no *.safetensors file. Download the model again.")
