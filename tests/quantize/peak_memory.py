"""Peak memory of a data-free run over its start, on a model of so many files.

`python peak_memory.py FOLDER make FILES` makes the model, in a process of its own;
`python peak_memory.py FOLDER SCHEME` quantizes it.
Also prints the weights quantized a second, which is what quantize.schemes states.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from quantize import checkpoint, plan, stream
from quantize.progress import resident_bytes
from quantize.schemes import SCHEMES, Recipe

ROWS, COLUMNS, EXPERTS = 768, 2048, 24
"""Three projections of the published model's experts; 24 of them are 226 MB."""


def model(folder: Path, files: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen3MoeForCausalLM"]}))
    generator = torch.Generator().manual_seed(0)
    for number in range(files):
        owner = f"model.layers.{number}.mlp.experts"
        shapes = {
            f"{owner}.{expert}.{kind}_proj.weight": (COLUMNS, ROWS) if kind == "down" else (ROWS, COLUMNS)
            for expert in range(EXPERTS)
            for kind in ("gate", "up", "down")
        }
        weights = {name: torch.randn(shape, generator=generator).to(torch.bfloat16) for name, shape in shapes.items()}
        save_file(weights, folder / f"model-{number}.safetensors", metadata={"format": "pt"})
    return folder


def peak() -> int:
    """Bytes, of this process so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def quantize(source: Path, out: Path, scheme: str) -> int:
    """Returns how many weights."""
    made = plan.make(checkpoint.read_source(source), Recipe(scheme))
    out.mkdir()
    stream.write(made, out, stream.scheme_for(made))
    return sum(tensor.count for group in made.groups.values() for tensor in group)


def warm(scheme: str) -> None:
    """Everything imported, and its first memory taken."""
    made = Recipe(scheme)
    weights = {"a": torch.randn(128, 128).to(torch.bfloat16)}
    fake = plan.Plan(None, made, SCHEMES[scheme], (), {}, {}, {}, frozenset())  # type: ignore[arg-type]
    stream.quantize_group(weights, stream.scheme_for(fake))


def main(folder: Path, scheme: str) -> None:
    """FOLDER has the model; the result goes beside it."""
    warm(scheme)
    start, began = resident_bytes(), time.monotonic()
    weights = quantize(folder, folder.with_name(f"{folder.name}-out"), scheme)
    seconds = time.monotonic() - began
    shard = max(file.stat().st_size for file in folder.glob("*.safetensors"))
    found = {"start": start, "over_start": peak() - start, "shard": shard, "million_a_second": weights / seconds / 1e6}
    print(json.dumps(found))


if __name__ == "__main__":
    if len(sys.argv) == 4:
        model(Path(sys.argv[1]), int(sys.argv[3]))
    else:
        main(Path(sys.argv[1]), sys.argv[2])
