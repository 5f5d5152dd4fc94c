"""Tensors of a checkpoint, read when they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quantize import formats
from quantize.checkpoint import Checkpoint, Tensor
from quantize.formats import Layer

if TYPE_CHECKING:
    import torch

_MAPPED_FILES = 2


class Weights:
    """Tensors of a checkpoint, read when asked for. A few files stay mapped at a time, so ask in the files' order."""

    def __init__(self, found: Checkpoint) -> None:
        self._found = found
        self._open: dict[str, Any] = {}

    def get(self, tensor: Tensor) -> torch.Tensor:
        from safetensors import safe_open

        if tensor.file not in self._open:
            if len(self._open) >= _MAPPED_FILES:
                self._open.pop(next(iter(self._open)))
            self._open[tensor.file] = safe_open(self._found.folder / tensor.file, "pt")
        value: torch.Tensor = self._open[tensor.file].get_tensor(tensor.name)
        return value

    def layer(self, layer: Layer, where: str = "cpu") -> torch.Tensor:
        """F32 [out, in], on the device `where`."""
        return formats.dequantize(layer, {last: self.get(tensor).to(where) for last, tensor in layer.tensors.items()})
