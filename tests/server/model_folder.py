"""Model folders of Qwen3-Omni-30B-A3B with real names, shapes and sizes, of which only the headers take disk space.

shapes.json has every parameter of the published model by name (`{48}` stands for 0 to 47): 35.26 billion.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SHAPES: dict[str, list[int]] = json.loads((Path(__file__).parent / "shapes.json").read_text())
BYTES = {"BF16": 2, "F32": 4, "U8": 1, "I32": 4, "I64": 8, "F8_E4M3": 1}
SHARD_BYTES = 5 * 10**9
THINKER_LAYERS = re.compile(
    r"thinker\.model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.experts\.\d+\.\w+_proj)\.weight"
)
TALKER_LAYERS = re.compile(
    r"talker\.model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(experts\.\d+|shared_expert)\.\w+_proj)\.weight"
)
Laid = Iterator[tuple[str, str, list[int]]]
"""Name, dtype and shape."""


def parameters() -> Iterator[tuple[str, list[int]]]:
    """Every parameter, experts one by one as in the published files."""
    for pattern, shape in SHAPES.items():
        count = re.search(r"\{(\d+)\}", pattern)
        for index in range(int(count[1]) if count else 1):
            name = re.sub(r"\{\d+\}", str(index), pattern)
            yield from _experts(name, shape) if "mlp.experts." in name else [(name, shape)]


def _experts(name: str, shape: list[int]) -> Iterator[tuple[str, list[int]]]:
    experts, rows, columns = shape
    owner, _, kind = name.rpartition(".")
    halves = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
    for expert in range(experts):
        for half in halves:
            yield f"{owner}.{expert}.{half}.weight", [rows // len(halves), columns]


def _packed(name: str, shape: list[int], per_byte: int, scale: tuple[str, int], *extra: str) -> Laid:
    base, (rows, columns) = name.removesuffix(".weight"), shape
    dtype = "I32" if extra == ("weight_shape",) else "U8"
    yield f"{base}.weight_packed", dtype, [rows, columns // per_byte // BYTES[dtype]]
    yield f"{base}.weight_scale", scale[0], [rows, columns // scale[1]]
    for last in extra:
        yield f"{base}.{last}", "F32", [1]


def bf16(name: str, shape: list[int]) -> Laid:
    yield name, "BF16", shape


def nvfp4(name: str, shape: list[int]) -> Laid:
    return _packed(name, shape, 2, ("F8_E4M3", 16), "weight_global_scale", "input_global_scale")


def nvfp4a16(name: str, shape: list[int]) -> Laid:
    return _packed(name, shape, 2, ("F8_E4M3", 16), "weight_global_scale")


def w4a16(name: str, shape: list[int]) -> Laid:
    return _packed(name, shape, 2, ("BF16", 128), "weight_shape")


def fp8(name: str, shape: list[int]) -> Laid:
    yield name, "F8_E4M3", shape
    yield f"{name}_scale", "BF16", [shape[0], 1]


Scheme = Callable[[str, list[int]], Laid]
FORMATS: dict[str, tuple[Scheme, Scheme]] = {
    "bf16": (bf16, bf16),
    "fp8": (fp8, bf16),
    "w4a16": (w4a16, bf16),
    "nvfp4": (nvfp4, bf16),
    "nvfp4a16": (nvfp4a16, bf16),
    "nvfp4-talker": (nvfp4, nvfp4),
}
"""How thinker and talker are stored in each kind of checkpoint."""


def config(quantized: bool) -> dict[str, Any]:
    """config.json of the published model, as far as it says anything about memory."""

    def decoder(layers: int, hidden: int, heads: int, kv: int) -> dict[str, Any]:
        return {
            "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads,
            "num_key_value_heads": kv, "head_dim": 128, "max_position_embeddings": 65536,
        }  # fmt: skip

    found: dict[str, Any] = {
        "model_type": "qwen3_omni_moe",
        "enable_audio_output": True,
        "thinker_config": {"text_config": decoder(48, 2048, 32, 4)},
        "talker_config": {
            "text_config": decoder(20, 1024, 16, 2),
            "speaker_id": {"chelsie": 2301, "ethan": 2302, "aiden": 2303},
        },
        "code2wav_config": {"num_quantizers": 16},
    }
    if quantized:
        found["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}}},
        }
    return found


def tensors(kind: str, change: Callable[[str], Scheme | None] = lambda _: None) -> Laid:
    """The tensors of a checkpoint; `change` may give a single parameter another scheme."""
    thinker, talker = FORMATS[kind]
    for name, shape in parameters():
        scheme = thinker if THINKER_LAYERS.fullmatch(name) else talker if TALKER_LAYERS.fullmatch(name) else bf16
        yield from (change(name) or scheme)(name, shape)


def make(folder: Path, kind: str, change: Callable[[str], Scheme | None] = lambda _: None) -> Path:
    """A folder that looks whole: config, tokenizer, template, index, and sparse weight files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(kind != "bf16")))
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (folder / name).write_text("{}")
    (folder / "chat_template.json").write_text('{"chat_template": "{{ messages }}"}')
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(_shards(tensors(kind, change))):
        file = f"model-{number:05d}.safetensors"
        write(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def _shards(laid: Laid) -> Iterator[dict[str, tuple[str, list[int]]]]:
    shard: dict[str, tuple[str, list[int]]] = {}
    size = 0
    for name, dtype, shape in laid:
        shard[name] = dtype, shape
        size += math.prod(shape) * BYTES[dtype]
        if size > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
    yield shard


def write(path: Path, shard: dict[str, tuple[str, list[int]]]) -> None:
    """A safetensors file with a true header and a hole where the weights would be."""
    end, header = 0, {}
    for name, (dtype, shape) in shard.items():
        begin, end = end, end + math.prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
