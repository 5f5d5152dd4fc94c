"""Checkpoints are read without torch, and nothing in them is ever run."""

from __future__ import annotations

import os
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from omni_app.engines.builtin.checkpoint import read_checkpoint
from omni_app.errors import AssetUnavailable

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class Storage:
    def __init__(self, key: str, values: np.ndarray) -> None:
        self.key, self.values = key, values


class Tensor:
    """Pickles the way a torch tensor does."""

    def __init__(self, storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.args = (storage, offset, shape, stride, False, OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.args


class Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        if not isinstance(obj, Storage):
            return None
        name = "FloatStorage" if obj.values.dtype == np.float32 else "LongStorage"
        return ("storage", getattr(sys.modules["torch"], name), obj.key, "cpu", obj.values.size, None)


@pytest.fixture(autouse=True)
def _torch_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Just enough of torch's names for pickle to write them down."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("FloatStorage", "LongStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2() -> None: ...

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def dump(file: BinaryIO, value: object) -> None:
    Pickler(file, protocol=2).dump(value)


def write(path: Path, state: object, storages: list[Storage]) -> Path:
    with path.open("wb") as file:
        for value in (MAGIC, PROTOCOL, {"little_endian": True}, state, [storage.key for storage in storages]):
            dump(file, value)
        for storage in storages:
            file.write(storage.values.size.to_bytes(8, "little") + storage.values.tobytes())
    return path


def test_reads_whole_and_transposed_tensors(tmp_path: Path) -> None:
    values, count = np.arange(24, dtype=np.float32), np.array([7], np.int64)
    a, b = Storage("111", values), Storage("222", count)
    state = OrderedDict(
        plain=Tensor(a, 0, (2, 3, 4), (12, 4, 1)), turned=Tensor(a, 0, (4, 6), (1, 4)),
        part=Tensor(a, 20, (4,), (1,)), counter=Tensor(b, 0, (), ()),
    )  # fmt: skip
    weights = read_checkpoint(write(tmp_path / "a.pth", state, [a, b]))
    np.testing.assert_array_equal(weights["plain"], values.reshape(2, 3, 4))
    np.testing.assert_array_equal(weights["turned"], values.reshape(6, 4).T)
    np.testing.assert_array_equal(weights["part"], [20, 21, 22, 23])
    assert weights["counter"].dtype == np.int64
    assert int(weights["counter"]) == 7


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("position", range(5))
def test_refuses_to_run_anything(tmp_path: Path, position: int) -> None:
    parts: list[object] = [MAGIC, PROTOCOL, {}, OrderedDict(), []]
    parts[position] = Evil(tmp_path / "done")
    path = tmp_path / "evil.pth"
    with path.open("wb") as file:
        for part in parts:
            dump(file, part)
    with pytest.raises(AssetUnavailable, match=r"evil\.pth"):
        read_checkpoint(path)
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [(0, (9,), (1,)), (8, (1,), (1,)), (0, (2, 2), (7, 2)), (-1, (1,), (1,)), (2, (3,), (-1,))],
)  # fmt: skip
def test_refuses_a_tensor_that_reaches_outside_its_storage(
    tmp_path: Path, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    storage = Storage("1", np.zeros(8, np.float32))
    path = write(tmp_path / "out.pth", OrderedDict(a=Tensor(storage, offset, shape, stride)), [storage])
    with pytest.raises(AssetUnavailable, match="outside its storage"):
        read_checkpoint(path)


def test_a_cut_file_is_damaged(tmp_path: Path) -> None:
    storage = Storage("1", np.zeros(64, np.float32))
    path = write(tmp_path / "cut.pth", OrderedDict(a=Tensor(storage, 0, (64,), (1,))), [storage])
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(AssetUnavailable, match="fetch it"):
            read_checkpoint(path)
