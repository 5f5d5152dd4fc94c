"""Read quantized text models as transformers itself does, and as ours: `python compare_reload.py SOURCE FOLDER...`.

Prints for each how far the logits differ, relative to their norm, and how many tokens it generated.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from quantize import reload


def theirs(folder: str, ids: torch.Tensor) -> tuple[torch.Tensor, int]:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        return model(ids).logits, model.generate(ids, max_new_tokens=4, min_new_tokens=4).shape[-1] - ids.shape[-1]


def ours(source: str, folder: str, ids: torch.Tensor) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).eval()
    reload.put_weights(model, Path(folder))
    reload.round_inputs(model, Path(folder))
    with torch.no_grad():
        logits: torch.Tensor = model(ids).logits
    return logits


def main(source: str, *folders: str) -> None:
    ids = AutoTokenizer.from_pretrained(source)("A reader of these files may be another program.", return_tensors="pt")
    found = {}
    for folder in folders:
        logits, tokens = theirs(folder, ids.input_ids)
        error = (ours(source, folder, ids.input_ids) - logits).norm() / logits.norm()
        found[Path(folder).name] = {"error": float(error), "tokens": tokens}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
