"""What a run takes: peak memory of a data-free scheme, whatever the model's size, and seconds of a calibrated one.

In the quantizer's own interpreter, from the repository's root:

    .venv-quantize/bin/python benchmarks/quantize_memory.py grow WORK_FOLDER
    .venv-quantize/bin/python tests/quantize/tiny_omni.py TINY
    .venv-quantize/bin/python benchmarks/quantize_memory.py calibrated TINY WORK_FOLDER

`make FOLDER FILES` and `peak FOLDER SCHEME` are the steps of `grow`; peak memory is over its start, and the weights
quantized a second are what quantize.schemes states.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from quantize import checkpoint, job, plan, stream, worker
from quantize.job import Request
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


def measure(folder: Path, scheme: str) -> dict[str, float]:
    """FOLDER has the model; the result goes beside it."""
    warm(scheme)
    start, began = resident_bytes(), time.monotonic()
    weights = quantize(folder, folder.with_name(f"{folder.name}-{scheme}"), scheme)
    seconds = time.monotonic() - began
    shard = max(file.stat().st_size for file in folder.glob("*.safetensors"))
    return {"start": start, "over_start": peak() - start, "shard": shard, "million_a_second": weights / seconds / 1e6}


def grow(work: Path) -> None:
    """Peak over the start, in shards, on models of one, two and four files, each in a process of its own."""
    for files in (1, 2, 4):
        model(work / f"{files}", files)
        for scheme in ("FP8_DYNAMIC", "NVFP4A16"):
            command = [sys.executable, __file__, "peak", str(work / f"{files}"), scheme]
            said = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
            found = json.loads(said.splitlines()[-1])  # llm-compressor logs there too
            print(
                json.dumps({"files": files, "scheme": scheme, "shards": found["over_start"] / found["shard"], **found})
            )


def calibrated(folder: Path, work: Path) -> dict[str, float]:
    """Seconds of a whole job, verification and card included: NVFP4 on eight mixed samples."""
    began = time.monotonic()
    made = job.create(work / "jobs", Request(str(folder), str(work / "nvfp4"), Recipe("NVFP4", samples=8)))
    worker.quantize(made, lambda *step: None)
    return {"seconds": time.monotonic() - began, "peak": peak()}


def main(command: str, folder: Path, *rest: str) -> None:
    if command == "make":
        model(folder, int(rest[0]))
    elif command == "peak":
        print(json.dumps(measure(folder, rest[0])))
    elif command == "grow":
        grow(folder)
    else:
        print(json.dumps(calibrated(folder, Path(rest[0]))))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
