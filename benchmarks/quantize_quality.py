"""What each scheme costs a real small language model, SmolLM2-135M-Instruct, in perplexity and agreement.

Runs in the quantizer's own interpreter, from the repository's root:

    .venv-quantize/bin/python benchmarks/quantize_quality.py MODEL.gguf WORK_FOLDER [RECIPE ...]

The weights are those of the builtin engine's GGUF (Q4_1), read by transformers: the baseline itself was quantized once.
Held-out text: the reference of Python's own documentation; calibration: licence texts.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from quantize import job, quality, worker
from quantize.job import Request
from quantize.schemes import Recipe

RECIPES = {
    "FP8_DYNAMIC": Recipe("FP8_DYNAMIC"),
    "NVFP4A16": Recipe("NVFP4A16"),
    "NVFP4A16 mse": Recipe("NVFP4A16", "mse"),
    "W4A16 g64": Recipe("W4A16", group=64),
    "NVFP4": Recipe("NVFP4", samples=8),
    "NVFP4 mse": Recipe("NVFP4", "mse", samples=8),
    "NVFP4A16 gptq": Recipe("NVFP4A16", "gptq", samples=16),
    "NVFP4A16 gptq-mse": Recipe("NVFP4A16", "gptq-mse", samples=16),
    "NVFP4 gptq": Recipe("NVFP4", "gptq", samples=16),
    "W4A16 g64 gptq": Recipe("W4A16", "gptq", samples=16, group=64),
}
_LICENCES = ("GPL-3", "MPL-2.0", "GFDL-1.3", "Artistic")
_CHARACTERS = 2_200
"""About 512 tokens."""


def main(gguf: Path, work: Path, *names: str) -> None:
    model = _model(gguf, work / "bf16")
    calibration = _calibration(work / "calibration.jsonl")
    for name in names or RECIPES:
        out = work / name.replace(" ", "-")
        began = time.monotonic()
        made = job.create(work / "jobs", Request(str(model), str(out), RECIPES[name], str(calibration)))
        worker.quantize(made, lambda *step: None)
        seconds = time.monotonic() - began
        size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
        measured = {key: round(value, 4) for key, value in quality.compare(model, out, quality.held_out()).items()}
        row = {"scheme": name, **measured, "megabytes": round(size / 1e6, 1), "seconds": round(seconds, 1)}
        print(json.dumps(row), flush=True)


def _model(gguf: Path, folder: Path) -> Path:
    """The GGUF's weights as a BF16 checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not folder.exists():
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
        del model.config.quantization_config  # says GGUF, which transformers 5.17 will not save; the weights are plain
        plain = type(model)(model.config).to(torch.bfloat16)
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(folder)
    return folder


def _calibration(path: Path) -> Path:
    folder = Path("/usr/share/common-licenses")
    files = [folder / name for name in _LICENCES if (folder / name).exists()]
    text = "".join(file.read_text(errors="replace") for file in files or [Path("LICENSE")])
    pieces = [text[at : at + _CHARACTERS] for at in range(0, len(text), _CHARACTERS)]
    path.write_text("\n".join(json.dumps({"text": piece}) for piece in pieces))
    return path


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
