"""What a model folder holds: its parts, how each is quantized, its voices; and what keeps it from being served."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from omni_app.errors import CheckpointUnusable
from omni_app.server import shards
from omni_app.server.parts import Contents, Part, Quantization, is_quantized


class _Decoder(BaseModel):
    num_hidden_layers: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    head_dim: int | None = Field(None, gt=0)
    max_position_embeddings: int = Field(gt=0)


class _TextPart(BaseModel):
    text_config: _Decoder
    speaker_id: dict[str, Any] | None = None


class _Config(BaseModel):
    model_type: str = ""
    enable_audio_output: bool = True
    thinker_config: _TextPart
    talker_config: _TextPart | None = None


@dataclass(frozen=True, slots=True)
class Decoder:
    """What the KV cache of a language model is made of."""

    layers: int
    kv_heads: int
    heads: int
    head_dim: int
    hidden: int
    positions: int
    """Longest context, in tokens."""

    @property
    def kv_bytes_per_token(self) -> int:
        """Key and value of every layer in BF16."""
        return self.layers * self.kv_heads * self.head_dim * 2 * 2


@dataclass(frozen=True, slots=True)
class Checkpoint:
    folder: Path
    parts: Mapping[str, Part]
    method: str
    """The quantizer's own name for itself in config.json: compressed-tensors, modelopt, ...; empty for none."""
    thinker: Decoder
    talker: Decoder | None
    speakers: tuple[str, ...]
    speaks: bool
    """Whether talker and code2wav are there and switched on."""
    tensors: int

    @property
    def thinker_format(self) -> str:
        """Format of the experts, which are nine tenths of the thinker."""
        return self.parts["experts"].formats[0]

    @property
    def talker_format(self) -> str:
        return self.parts["talker"].formats[0] if "talker" in self.parts else ""

    @property
    def talker_is_quantized(self) -> bool:
        return "talker" in self.parts and is_quantized(self.talker_format)

    @property
    def thinker_is_quantized(self) -> bool:
        return any(is_quantized(form) for name in ("experts", "attention") for form in self.parts[name].formats)

    def size(self, names: Iterable[str]) -> int:
        """Bytes of these parts together."""
        return sum(self.parts[name].size for name in names if name in self.parts)


def read(folder: Path) -> Checkpoint:
    """Look into a model folder. Raises CheckpointUnusable; its message has one sentence for each problem."""
    raw, config = _config(folder)
    problems = list(_missing_files(folder))
    try:
        tensors = shards.read(folder)
    except CheckpointUnusable as error:
        raise CheckpointUnusable("\n".join([*problems, str(error)])) from error
    quantization = _quantization(folder, raw)
    held = Contents.of(tensors, quantization)
    problems += held.problems()
    if problems:
        raise CheckpointUnusable("\n".join(problems))
    parts = held.parts
    talker = config.talker_config
    return Checkpoint(
        folder, parts, quantization.method, _decoder(config.thinker_config), _decoder(talker) if talker else None,
        tuple(talker.speaker_id or ()) if talker else (),
        config.enable_audio_output and talker is not None and "talker" in parts and "code2wav" in parts, len(tensors),
    )  # fmt: skip


# --- files of the folder


def _config(folder: Path) -> tuple[dict[str, Any], _Config]:
    if not _is_folder(folder):
        raise CheckpointUnusable(
            f"{folder} is not a folder. Give the folder of a downloaded model; "
            "`hf download Qwen/Qwen3-Omni-30B-A3B-Instruct --local-dir FOLDER` fetches one."
        )
    raw = _json(folder / "config.json")
    if raw is None:
        raise CheckpointUnusable(f"{folder} is not a model folder: it has no readable config.json. Choose another one.")
    if raw.get("model_type") != "qwen3_omni_moe":
        raise CheckpointUnusable(
            f"{folder} holds a model of type {raw.get('model_type') or 'unknown'}, not Qwen3-Omni (qwen3_omni_moe). "
            "Choose the folder of Qwen3-Omni."
        )
    try:
        return raw, _Config.model_validate(raw)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise CheckpointUnusable(f"config.json in {folder} has no usable {where}; download that file again.") from error


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False  # a name too long, or a place that we may not look into


def _json(path: Path) -> dict[str, Any] | None:
    try:
        # A pipe of that name would be read for ever.
        found = json.loads(path.read_text()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _missing_files(folder: Path) -> Iterator[str]:
    has = {path.name for path in folder.iterdir()}
    if not ("tokenizer.json" in has or {"vocab.json", "merges.txt"} <= has):
        yield "The tokenizer is missing: copy tokenizer.json and tokenizer_config.json from the original model."
    if not _has_template(folder):
        yield (
            "The chat template is missing, and without it pictures and sound would be dropped: "
            "copy chat_template.json from the original model."
        )
    if "preprocessor_config.json" not in has:
        yield "preprocessor_config.json is missing, so media cannot be read: copy it from the original model."


def _has_template(folder: Path) -> bool:
    """Whether there is a chat template with something in it, in any of the three places where one may be."""
    inside = (_json(folder / name) or {} for name in ("chat_template.json", "tokenizer_config.json"))
    jinja = folder / "chat_template.jinja"
    return any(one.get("chat_template") for one in inside) or (jinja.is_file() and jinja.stat().st_size > 0)


def _quantization(folder: Path, raw: Mapping[str, Any]) -> Quantization:
    if isinstance(top := raw.get("quantization_config"), dict):
        # Packed integers do not tell their width.
        bits = re.search(r'"(?:num_bits|bits)": (\d+)', json.dumps(top))
        return Quantization(str(top.get("quant_method", "unknown")), bits=int(bits[1]) if bits else 4)
    if _json(folder / "hf_quant_config.json") is not None:
        return Quantization("modelopt")
    inner = raw["thinker_config"]["text_config"].get("quantization_config")
    if isinstance(inner, dict):
        return Quantization(str(inner.get("quant_method", "unknown")), nested=True)
    return Quantization("")


def _decoder(part: _TextPart) -> Decoder:
    c = part.text_config
    return Decoder(
        c.num_hidden_layers, c.num_key_value_heads, c.num_attention_heads,
        c.head_dim or c.hidden_size // c.num_attention_heads, c.hidden_size, c.max_position_embeddings,
    )  # fmt: skip
