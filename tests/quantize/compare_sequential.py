"""The stream against llm-compressor's own sequential round-to-nearest run: `python compare_sequential.py SOURCE OUT`.

Both calibrate on the same samples. Prints how many tensors are bit-identical, and how far input scales differ: without
passing each layer's quantization error on to the next, as the stream does not, and with it, as is llm-compressor's way.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import llmcompressor
import torch
from compare_model_free import bits, tensors

from quantize import calibration, checkpoint, plan, sequential, stream
from quantize.schemes import Recipe


def main(source: Path, out: Path) -> None:
    parts = ("thinker_attention", "thinker_experts", "talker_attention", "talker_experts", "talker_shared_experts")
    made = plan.make(checkpoint.read_source(source), Recipe("NVFP4", parts=parts, samples=4))
    scheme = stream.scheme_for(made)
    for name in ("stream", "sequential", "propagating"):
        (out / name).mkdir(parents=True)
    peaks = calibration.amax(made, "", out / "calibration")
    stream.write(made, out / "stream", scheme, peaks)
    sequential.write(made, out / "propagating", scheme, "")
    llmcompressor.oneshot = partial(llmcompressor.oneshot, propagate_error=False, quantization_aware_calibration=False)
    sequential.write(made, out / "sequential", scheme, "")
    ours, theirs, propagating = (tensors(out / name) for name in ("stream", "sequential", "propagating"))
    inputs = [name for name in theirs if name.endswith("input_global_scale")]
    others = [name for name in theirs if name not in inputs]
    found = {
        "same_names": ours.keys() == theirs.keys(),
        "weights": len(others),
        "identical": sum(torch.equal(bits(ours[name]), bits(theirs[name])) for name in others),
        "inputs": len(inputs),
        "input_error": max(abs(float(ours[name] / theirs[name]) - 1) for name in inputs),
        "input_error_propagating": max(abs(float(ours[name] / propagating[name]) - 1) for name in inputs),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
