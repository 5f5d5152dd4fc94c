"""The ONNX graph computes what the network's definition says, checked against plain numpy on a tiny network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from omni_app.engines.builtin import imagenet_graph
from omni_app.engines.builtin.imagenet_graph import INPUT, OUTPUT, SIDE, build, classifier_onnx

Array = NDArray[np.float32]
CLASSES = 10


def tiny_weights() -> dict[str, Array]:
    """Stem, a first block, a halving block that widens, a block with a way round it, head and classifier."""
    random = np.random.default_rng(1)
    shapes = {
        "_conv_stem": (4, 3, 3, 3), "_blocks.0._depthwise_conv": (4, 1, 3, 3), "_blocks.0._project_conv": (4, 4, 1, 1),
        "_blocks.1._expand_conv": (8, 4, 1, 1), "_blocks.1._depthwise_conv": (8, 1, 5, 5),
        "_blocks.1._project_conv": (6, 8, 1, 1), "_blocks.2._expand_conv": (12, 6, 1, 1),
        "_blocks.2._depthwise_conv": (12, 1, 3, 3), "_blocks.2._project_conv": (6, 12, 1, 1),
        "_conv_head": (16, 6, 1, 1),
    }  # fmt: skip
    weights = {f"{name}.weight": random.normal(0, 0.4, shape) for name, shape in shapes.items()}
    norms = {"_bn0": 4, "_bn1": 16, "_blocks.0._bn1": 4, "_blocks.0._bn2": 4}
    for block, (wide, narrow) in ((1, (8, 6)), (2, (12, 6))):
        norms |= {f"_blocks.{block}._bn{n}": wide for n in (0, 1)} | {f"_blocks.{block}._bn2": narrow}
    for name, width in norms.items():
        weights |= {f"{name}.weight": random.uniform(0.5, 2, width), f"{name}.bias": random.normal(0, 1, width)}
        weights |= {f"{name}.running_mean": random.normal(0, 1, width)}
        weights |= {f"{name}.running_var": random.uniform(0.1, 2, width)}
    weights |= {"_fc.weight": random.normal(0, 1, (CLASSES, 16)), "_fc.bias": random.normal(0, 1, CLASSES)}
    return {name: values.astype(np.float32) for name, values in weights.items()}


class Reference:
    """The network's definition in numpy: no folding, padding by hand."""

    def __init__(self, weights: dict[str, Array]) -> None:
        self.w = weights

    def conv(self, x: Array, conv: str, norm: str, stride: int = 1) -> Array:
        kernel = self.w[f"{conv}.weight"]
        size = kernel.shape[-1]
        total = max((-(-x.shape[-1] // stride) - 1) * stride + size - x.shape[-1], 0)
        pad = (total // 2, total - total // 2)
        windows = sliding_window_view(np.pad(x, ((0, 0), pad, pad)), (size, size), axis=(1, 2))[:, ::stride, ::stride]
        depthwise = kernel.shape[1] == 1 and kernel.shape[0] == x.shape[0]
        out = (
            np.einsum("cijhw,chw->cij", windows, kernel[:, 0])
            if depthwise
            else np.einsum("cijhw,ochw->oij", windows, kernel)
        )
        mean, var = self.w[f"{norm}.running_mean"], self.w[f"{norm}.running_var"]
        scale, shift = self.w[f"{norm}.weight"], self.w[f"{norm}.bias"]
        return (out - mean[:, None, None]) / np.sqrt(var + 1e-3)[:, None, None] * scale[:, None, None] + shift[
            :, None, None
        ]

    def probabilities(self, x: Array) -> Array:
        x = self.conv(x, "_conv_stem", "_bn0", 2).clip(0, 6)
        x = self.conv(x, "_blocks.0._depthwise_conv", "_blocks.0._bn1").clip(0, 6)
        x = self.conv(x, "_blocks.0._project_conv", "_blocks.0._bn2")
        for block, stride in ((1, 2), (2, 1)):
            name = f"_blocks.{block}"
            wide = self.conv(x, f"{name}._expand_conv", f"{name}._bn0").clip(0, 6)
            wide = self.conv(wide, f"{name}._depthwise_conv", f"{name}._bn1", stride).clip(0, 6)
            narrow = self.conv(wide, f"{name}._project_conv", f"{name}._bn2")
            x = narrow + x if block == 2 else narrow
        x = self.conv(x, "_conv_head", "_bn1").clip(0, 6).mean(axis=(1, 2))
        logits = self.w["_fc.weight"] @ x + self.w["_fc.bias"]
        exp = np.exp(logits - logits.max())
        return exp / exp.sum()


def run(model: bytes, pixels: Array) -> Array:
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {INPUT: pixels})[0]


def test_agrees_with_numpy() -> None:
    weights = tiny_weights()
    pixels = np.random.default_rng(2).uniform(-1, 1, (2, 3, SIDE, SIDE)).astype(np.float32)
    expected = [Reference(weights).probabilities(picture) for picture in pixels]
    np.testing.assert_allclose(run(build(weights), pixels), expected, rtol=2e-3, atol=1e-5)


def test_is_a_valid_onnx_model_and_the_same_each_time() -> None:
    import onnx

    model = build(tiny_weights())
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    assert build(tiny_weights()) == model


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(imagenet_graph, "read_checkpoint", lambda _: tiny_weights())
    return tmp_path / "tiny.pth"


def test_is_kept_and_built_again_when_damaged(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier_onnx(checkpoint, checkpoint.parent)
    kept = checkpoint.with_suffix(".onnx")
    assert kept.read_bytes() == model
    kept.write_bytes(model[:-5] + b"wrong")
    assert classifier_onnx(checkpoint, checkpoint.parent) == model
    assert kept.read_bytes() == model

    monkeypatch.setattr(imagenet_graph, "read_checkpoint", lambda _: pytest.fail("built although it was kept"))
    assert classifier_onnx(checkpoint, checkpoint.parent) == model


def test_a_folder_that_cannot_be_written_only_costs_time(checkpoint: Path) -> None:
    assert classifier_onnx(checkpoint, checkpoint.parent / "missing") == build(tiny_weights())
