"""Read PyTorch's old checkpoint form (before 1.6: pickles followed by raw storages) without torch and without trust.

The form, as `torch.serialization._legacy_save` wrote it: four pickles (magic number, protocol version, sizes of C
types, the state dict), a fifth with the order of the storages, then each storage as a 64-bit count and its elements. A
tensor in the state dict is a call of `torch._utils._rebuild_tensor_v2` on a persistent id that names a storage.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from omni_app.errors import AssetUnavailable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float32] | NDArray[np.int64]

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_TYPES = {"FloatStorage": "<f4", "LongStorage": "<i8"}


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: str
    size: int
    """Elements."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A view into a storage; offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.shape, *self.stride)
        last = self.offset + sum((length - 1) * step for length, step in zip(self.shape, self.stride, strict=True))
        if not all(isinstance(number, int) and number >= 0 for number in numbers) or last >= self.storage.size:
            raise pickle.UnpicklingError("it holds a tensor that reaches outside its storage")


def read_checkpoint(path: Path) -> dict[str, Array]:
    """The arrays of a state dict by name. Raises AssetUnavailable when the file is not such a checkpoint, or asks for
    any class or function but the few that a state dict needs."""
    try:
        with path.open("rb") as file:
            return _read(file)
    except (pickle.UnpicklingError, ValueError, TypeError, KeyError, EOFError, IndexError, AttributeError) as error:
        raise AssetUnavailable(
            f"{path.name} is not the checkpoint it should be ({error}); delete it and start the app again to fetch it."
        ) from error


def _read(file: BinaryIO) -> dict[str, Array]:
    if _load(file) != _MAGIC or _load(file) != _PROTOCOL:
        raise ValueError("it does not begin like a checkpoint")
    _load(file)
    tensors = _load(file)
    keys = _load(file)
    if not isinstance(tensors, Mapping) or not isinstance(keys, Sequence):
        raise ValueError("it holds no table of tensors")
    wanted = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    storages = {key: _read_storage(file, wanted[key]) for key in keys}
    return {name: _view(tensor, storages) for name, tensor in tensors.items()}


def _load(file: BinaryIO) -> object:
    return _StateDictUnpickler(file).load()


def _read_storage(file: BinaryIO, storage: _Storage) -> Array:
    import numpy as np

    count = int.from_bytes(file.read(8), "little")
    if count != storage.size:
        raise ValueError(f"storage {storage.key} has {count} elements, not {storage.size}")
    dtype = np.dtype(storage.dtype)
    return np.frombuffer(file.read(count * dtype.itemsize), dtype, count)


def _view(tensor: _Tensor, storages: Mapping[str, Array]) -> Array:
    import numpy as np

    flat = storages[tensor.storage.key]
    strides = [step * flat.itemsize for step in tensor.stride]
    view: Any = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides)
    return cast("Array", view.copy())


class _StateDictUnpickler(pickle.Unpickler):
    """Knows four names; every other one, and with it every way to run code, is refused."""

    def find_class(self, module: str, name: str) -> type | Callable[..., object] | str:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which weights have no use for")

    def persistent_load(self, pid: object) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) != 6 or pid[0] != "storage" or pid[5] is not None:
            raise pickle.UnpicklingError("it refers to something other than a whole storage")
        _, dtype, key, _, size, _ = pid
        if dtype not in _TYPES.values() or not isinstance(key, str) or not isinstance(size, int):
            raise pickle.UnpicklingError("it describes a storage in an unknown way")
        return _Storage(key, dtype, size)


def _rebuild(storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("it holds a tensor without a storage")
    return _Tensor(storage, offset, shape, stride)
