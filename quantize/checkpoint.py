"""What a model folder holds, by config.json and the headers of its safetensors files; no weights are read.

Format: https://huggingface.co/docs/safetensors (eight bytes of header length, a JSON header, the data).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from quantize.errors import ModelUnusable
from quantize.schemes import OMNI_PARTS, TEXT_PARTS, Part

INDEX = "model.safetensors.index.json"
MODELOPT = "hf_quant_config.json"
"""Where ModelOpt writes down what it did."""
OMNI = "Qwen3OmniMoeForConditionalGeneration"
_FLOATS = {"BF16": 2, "F16": 2, "F32": 4}
_WIDTHS = {**_FLOATS, "U8": 1, "I8": 1, "F8_E4M3": 1, "I32": 4, "I64": 8}
"""Bytes of one number."""
_SNAPSHOT = re.compile(r"/models--([^/]+--[^/]+)/snapshots/[^/]+$")
_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    dtype: str
    """As safetensors writes it: BF16, F8_E4M3, U8, ..."""
    shape: tuple[int, ...]
    size: int
    """Bytes."""
    file: str

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def whole(self) -> bool:
        """Whether its bytes are those of its shape, as far as its type is known here."""
        width = _WIDTHS.get(self.dtype)
        return min(self.shape, default=0) >= 0 and (width is None or self.size == self.count * width)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def architecture(self) -> str:
        named = self.config.get("architectures")
        return str(named[0]) if isinstance(named, list) and named else ""

    @property
    def is_omni(self) -> bool:
        return self.architecture == OMNI

    @property
    def parts(self) -> tuple[Part, ...]:
        return OMNI_PARTS if self.is_omni else TEXT_PARTS

    @property
    def files(self) -> list[str]:
        """Weight files in order."""
        return sorted({tensor.file for tensor in self.tensors.values()})

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor in self.tensors.values())

    @property
    def dtype(self) -> str:
        """Of most bytes."""
        sizes: Counter[str] = Counter()
        for tensor in self.tensors.values():
            sizes[tensor.dtype] += tensor.size
        return sizes.most_common(1)[0][0]

    @property
    def largest_shard(self) -> int:
        """Bytes of the tensors in the fullest file."""
        sizes: Counter[str] = Counter()
        for tensor in self.tensors.values():
            sizes[tensor.file] += tensor.size
        return max(sizes.values())

    @property
    def name(self) -> str:
        """What the model is called: its id where a hub's cache or config.json tells it, else the folder's name.

        Cards and reports name it, so no path that config.json may hold of the machine that saved it.
        """
        cached = _SNAPSHOT.search(str(self.folder))
        named = str(self.config.get("_name_or_path") or "")
        known = named if _ID.fullmatch(named) else self.folder.name
        return cached[1].replace("--", "/", 1) if cached else known


def read(folder: Path) -> Checkpoint:
    """A whole model folder, quantized or not. Raises ModelUnusable that says what is missing."""
    config = _config(folder)
    files, expected = _files(folder)
    tensors = {tensor.name: tensor for file in files for tensor in _header(file)}
    if absent := expected - tensors.keys():
        raise ModelUnusable(
            f"{len(absent)} tensors of {INDEX} are in no file, {min(absent)} for one; download the model again."
        )
    return Checkpoint(folder, config, tensors)


def read_source(folder: Path) -> Checkpoint:
    """A model folder that can be quantized. Raises ModelUnusable where it cannot."""
    found = read(folder)
    require_source(found, str(folder), (folder / MODELOPT).exists())
    return found


def require_source(found: Checkpoint, name: str, has_modelopt_file: bool) -> None:
    """Raises ModelUnusable where a model cannot be quantized.

    name: what the user calls it.
    """
    if has_modelopt_file or quantizer_sections(found.config):
        raise ModelUnusable(
            f"{name} is already quantized, and quantizing twice only loses quality; start from the BF16 model."
        )
    if not found.architecture:
        raise ModelUnusable(f"config.json of {name} names no architecture; download that file again.")
    if not found.is_omni and not found.architecture.endswith("ForCausalLM"):
        raise ModelUnusable(
            f"{name} holds {found.architecture}, which this tool does not know; "
            f"it takes {OMNI} and text models (…ForCausalLM)."
        )
    if not found.size:
        raise ModelUnusable(f"The files of {name} hold no weights; download the model again.")
    if odd := next((t for t in found.tensors.values() if t.dtype not in _FLOATS), None):
        raise ModelUnusable(f"{odd.name} is stored as {odd.dtype}, not as BF16; start from the BF16 model.")
    if fused := next((t.name for t in found.tensors.values() if ".experts." in t.name and len(t.shape) == 3), None):
        raise ModelUnusable(
            f"{fused} holds all experts in one tensor; take the published layout, which has one tensor for each expert."
        )


def quantizer_sections(config: Mapping[str, Any], where: str = "") -> dict[str, Mapping[str, Any]]:
    """Every quantization_config of a config.json by where it stands, the outermost first."""
    found: dict[str, Mapping[str, Any]] = {}
    sections = {name: value for name, value in config.items() if isinstance(value, Mapping)}
    if (own := sections.pop("quantization_config", None)) is not None:
        found[f"{where}quantization_config"] = own
    for name, section in sections.items():
        found |= quantizer_sections(section, f"{where}{name}.")
    return found


def without_quantizer(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same config.json as of an unquantized model."""
    return {
        name: without_quantizer(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name != "quantization_config"
    }


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not _is_file(path):
        raise ModelUnusable(f"{folder} is not a model folder: there is no config.json in it.")
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelUnusable(f"{path} cannot be read as JSON; download that file again.") from error
    if not isinstance(config, dict):
        raise ModelUnusable(f"{path} is not a model's configuration; download that file again.")
    return config


def _is_file(path: Path) -> bool:
    """Whether it can be read to an end: a pipe would be waited for, and a name may be too long to exist."""
    try:
        return path.is_file()
    except OSError:
        return False


def _files(folder: Path) -> tuple[list[Path], set[str]]:
    """The weight files, and the names of the tensors that they must hold where an index says so."""
    index = folder / INDEX
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelUnusable(f"There are no weights in {folder}: no *.safetensors file; download the model again.")
        return files, set()
    try:
        names = json.loads(index.read_text())["weight_map"]
        files_of = {str(tensor): str(file) for tensor, file in names.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelUnusable(f"{index} cannot be read; download that file again.") from error
    if strange := next((file for file in files_of.values() if Path(file).name != file), None):
        raise ModelUnusable(f"{INDEX} names a file outside its own folder, {strange}; download the model again.")
    return [folder / file for file in sorted(set(files_of.values()))], set(files_of)


def _gapless(spans: Iterable[tuple[int, int]]) -> bool:
    """Whether each tensor begins where the one before it ends, without which safetensors opens no file."""
    ordered = sorted(spans)
    return all(before == begin for (_, before), (begin, _) in pairwise([(0, 0), *ordered]))


def _header(file: Path) -> Iterator[Tensor]:
    if file.exists() and not _is_file(file):
        raise ModelUnusable(f"{file.name} in {file.parent} is no file; download that file again.")
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                raise ValueError("the header is longer than the format allows")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        spans = {name: (int(entry["data_offsets"][0]), int(entry["data_offsets"][1])) for name, entry in header.items()}
        shapes = {name: tuple(int(n) for n in entry["shape"]) for name, entry in header.items()}
    except FileNotFoundError as error:
        raise ModelUnusable(f"{file.name} is missing in {file.parent}; download that file again.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ModelUnusable(f"{file.name} is not a safetensors file or is damaged; download it again.") from error
    whole = 8 + length + max((end for _, end in spans.values()), default=0)
    if (size := file.stat().st_size) < whole:
        raise ModelUnusable(f"{file.name} is cut off: {size:,} of {whole:,} bytes are there; download that file again.")
    for name, (begin, end) in spans.items():
        found = Tensor(name, str(header[name]["dtype"]), shapes[name], end - begin, file.name)
        if begin < 0 or not found.whole:
            raise ModelUnusable(
                f"{file.name} is damaged: {name} does not have the bytes of its shape; download it again."
            )
        yield found
    if size > whole or not _gapless(spans.values()):
        raise ModelUnusable(f"{file.name} is damaged: its tensors do not fill it; download that file again.")
