"""Which of ImageNet's thousand kinds of things a picture is most like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from omni_app.engines.builtin.imagenet_graph import INPUT, OUTPUT, SIDE, classifier_onnx

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CROP = 224 / 256
"""Share of the short side that the network saw in training."""


class Classifier:
    def __init__(self, checkpoint: Path, names: Path) -> None:
        """Builds the graph beside `checkpoint` the first time. Raises AssetUnavailable."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        self._names: list[str] = json.loads(names.read_text())
        model = classifier_onnx(checkpoint, keep_in=checkpoint.parent)
        self._session: Any = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def top(self, image: Image.Image, count: int = 3) -> list[tuple[str, float]]:
        """Names and probabilities, likeliest first; averaged over the middle of the picture and the whole of it."""
        import numpy as np

        probabilities = self._session.run([OUTPUT], {INPUT: np.stack(pixels(image))})[0].mean(axis=0)
        by_name: dict[str, float] = {}
        for name, probability in zip(self._names, probabilities.tolist(), strict=True):
            by_name[name] = by_name.get(name, 0.0) + probability
        return sorted(by_name.items(), key=lambda item: -item[1])[:count]


def pixels(image: Image.Image) -> list[NDArray[np.float32]]:
    """The middle square and the squeezed whole, each (3, SIDE, SIDE) with values in about -1..1."""
    import numpy as np

    image = image.convert("RGB")
    side = max(1, round(min(image.size) * _CROP))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    views = (image.crop((left, top, left + side, top + side)), image)
    resized = (view.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for view in views)
    return [_scaled(np.asarray(view, np.float32)) for view in resized]


def _scaled(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """0..255 in (height, width, 3) to what the network was trained on."""
    import numpy as np

    return ((values.transpose(2, 0, 1) - 127) / 128).astype(np.float32)
