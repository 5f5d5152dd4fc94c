"""EfficientNet-Lite0 as an ONNX graph, laid once out of the published weights and kept beside them.

Source of the architecture: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. The
checkpoint's tensor names are those of lukemelas/EfficientNet-PyTorch and its numbers TensorFlow's, hence padding "same"
(more at the lower right) and a batch-norm epsilon of 1e-3. Shapes come from the weights, so only strides stand here.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omni_app.engines.builtin.checkpoint import read_checkpoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from omni_app.engines.builtin.checkpoint import Array

log = logging.getLogger(__name__)

SIDE = 224
"""Height and width of the input in pixels."""
INPUT = "pixels"
"""float32 (N, 3, 224, 224), RGB, (value - 127) / 128."""
OUTPUT = "probabilities"
"""float32 (N, 1000)."""

_HALVING_BLOCKS = frozenset({1, 3, 5, 11})
_BATCH_NORM_EPSILON = 1e-3
_OPSET = 17
_IR_VERSION = 9


def classifier_onnx(checkpoint: Path, keep_in: Path) -> bytes:
    """The serialised ONNX model; taken from `keep_in` when it is there undamaged, else built and put there.

    Raises AssetUnavailable when `checkpoint` is damaged.
    """
    kept = keep_in / f"{checkpoint.stem}.onnx"
    digest = kept.with_suffix(".onnx.sha256")
    with suppress(FileNotFoundError):  # at the first start
        model = kept.read_bytes()
        if digest.read_text() == hashlib.sha256(model).hexdigest():
            return model
        log.warning("%s is damaged and is built again", kept.name)
    model = build(read_checkpoint(checkpoint))
    try:
        _keep(model, kept, digest)
    except OSError as error:
        log.warning("%s could not be kept, so it is built at every start: %s", kept.name, error)
    return model


def _keep(model: bytes, kept: Path, digest: Path) -> None:
    for path, content in ((kept, model), (digest, hashlib.sha256(model).hexdigest().encode())):
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_bytes(content)
        partial.replace(path)


def build(weights: Mapping[str, Array]) -> bytes:
    """Lay the graph: stem, inverted-residual blocks without squeeze-and-excitation, head, mean, classifier, softmax."""
    from onnx import helper

    graph = _Graph(weights)
    x = graph.relu6(graph.conv(INPUT, "_conv_stem", "_bn0", stride=2))
    block = 0
    while f"_blocks.{block}._depthwise_conv.weight" in weights:
        x = graph.block(x, block)
        block += 1
    x = graph.relu6(graph.conv(x, "_conv_head", "_bn1"))
    x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    fc = [graph.constant(f"_fc.{kind}", weights[f"_fc.{kind}"]) for kind in ("weight", "bias")]
    graph.add("Softmax", graph.add("Gemm", x, *fc, transB=1), output=OUTPUT, axis=1)
    model = helper.make_model(
        graph.finish(),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="omni-app",
    )
    serialised: bytes = model.SerializeToString(deterministic=True)
    return serialised


class _Graph:
    """ONNX nodes in the making; every method returns the name of the tensor it computes."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        import numpy as np

        self._weights = weights
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        for name, value in (("zero", 0), ("six", 6)):
            self.constant(name, np.full((), value, np.float32))

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        from onnx import helper

        output = output or f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, name: str, values: Array) -> str:
        from onnx import numpy_helper

        self._constants.append(numpy_helper.from_array(values, name))
        return name

    def conv(self, x: str, conv: str, norm: str, stride: int = 1, groups: int = 1) -> str:
        kernel, bias = folded(self._weights, conv, norm)
        return self.add(
            "Conv", x, self.constant(f"{conv}.kernel", kernel), self.constant(f"{conv}.bias", bias),
            strides=[stride, stride], group=groups, auto_pad="SAME_UPPER",
        )  # fmt: skip

    def relu6(self, x: str) -> str:
        return self.add("Clip", x, "zero", "six")

    def block(self, x: str, index: int) -> str:
        """Inverted residual: widen 1x1 (not in the first), depthwise, narrow 1x1, and the way round it if it fits."""
        name = f"_blocks.{index}"
        stride = 2 if index in _HALVING_BLOCKS else 1
        wide = x
        if f"{name}._expand_conv.weight" in self._weights:
            wide = self.relu6(self.conv(x, f"{name}._expand_conv", f"{name}._bn0"))
        depth = self._weights[f"{name}._depthwise_conv.weight"].shape[0]
        wide = self.relu6(self.conv(wide, f"{name}._depthwise_conv", f"{name}._bn1", stride, groups=depth))
        narrow = self.conv(wide, f"{name}._project_conv", f"{name}._bn2")
        return self.add("Add", narrow, x) if stride == 1 and self._keeps_width(name) else narrow

    def _keeps_width(self, name: str) -> bool:
        expand = self._weights.get(f"{name}._expand_conv.weight")
        return expand is not None and expand.shape[1] == self._weights[f"{name}._project_conv.weight"].shape[0]

    def finish(self) -> Any:
        from onnx import TensorProto, helper

        classes = self._weights["_fc.weight"].shape[0]
        pixels = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
        probabilities = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", classes])
        return helper.make_graph(self._nodes, "efficientnet-lite0", [pixels], [probabilities], self._constants)


def folded(weights: Mapping[str, Array], conv: str, norm: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Kernel (out, in / groups, h, w) and bias (out,) of a convolution with its batch norm folded in."""
    import numpy as np

    scale = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + _BATCH_NORM_EPSILON)
    kernel = weights[f"{conv}.weight"] * scale[:, None, None, None]
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    return kernel.astype(np.float32), bias.astype(np.float32)
