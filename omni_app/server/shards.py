"""The tensors of a model folder, by the headers of its safetensors files; no weights are read.

Format: https://huggingface.co/docs/safetensors (eight bytes of header length, a JSON header, the data).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from omni_app.errors import CheckpointUnusable

INDEX = "model.safetensors.index.json"
_LENGTH_BYTES = 8
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    dtype: str
    """As safetensors writes it: BF16, F8_E4M3, U8, ..."""
    size: int
    """Bytes."""


def read(folder: Path) -> list[Tensor]:
    """Every tensor of the folder. Raises CheckpointUnusable that names each missing or cut-off file."""
    files, expected = _files(folder)
    problems: list[str] = []
    tensors: list[Tensor] = []
    for file in files:
        try:
            tensors.extend(_tensors(file))
        except CheckpointUnusable as error:
            problems.append(str(error))
    if not problems and (absent := expected - {tensor.name for tensor in tensors}):
        problems.append(
            f"{len(absent)} tensors of {INDEX} are in no file, {min(absent)} for one; download the model again."
        )
    if problems:
        raise CheckpointUnusable("\n".join(problems))
    return tensors


def _files(folder: Path) -> tuple[list[Path], set[str]]:
    """The weight files, and the names of the tensors that they must hold where an index says so."""
    index = folder / INDEX
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise CheckpointUnusable(
                f"There are no weights in {folder}: no *.safetensors file. Download the model again, all of it."
            )
        return files, set()
    names = _weight_map(index)
    if strange := next((name for name in names.values() if Path(name).name != name), None):
        raise CheckpointUnusable(f"{INDEX} names a file outside its own folder, {strange}; download the model again.")
    return [folder / name for name in sorted(set(names.values()))], set(names)


def _weight_map(index: Path) -> Mapping[str, str]:
    try:
        names = json.loads(index.read_text())["weight_map"]
        return {str(tensor): str(file) for tensor, file in names.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointUnusable(f"{INDEX} in {index.parent} cannot be read; download that file again.") from error


def _tensors(file: Path) -> Iterator[Tensor]:
    from huggingface_hub import parse_local_safetensors_file_metadata
    from huggingface_hub.errors import SafetensorsParsingError

    try:
        if not file.is_file():
            raise CheckpointUnusable(f"{file.name} is missing in {file.parent}; download that file again.")
        with file.open("rb") as stream:
            start = stream.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise CheckpointUnusable(f"{file.name} is only a pointer of Git LFS; run `git lfs pull` in {file.parent}.")
        header = parse_local_safetensors_file_metadata(file).tensors
        spans = {name: (int(info.data_offsets[0]), int(info.data_offsets[1])) for name, info in header.items()}
        data = max((end for _, end in spans.values()), default=0)
        whole = _LENGTH_BYTES + int.from_bytes(start[:_LENGTH_BYTES], "little") + data
    except OSError as error:
        raise CheckpointUnusable(f"{file.name} cannot be read ({error.strerror or error}).") from error
    except (SafetensorsParsingError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointUnusable(f"{file.name} is not a safetensors file or is damaged; download it again.") from error
    if (size := file.stat().st_size) < whole:
        raise CheckpointUnusable(
            f"{file.name} is cut off: {size:,} of {whole:,} bytes are there. Download that file again."
        )
    return (Tensor(name, header[name].dtype, end - begin) for name, (begin, end) in spans.items())
