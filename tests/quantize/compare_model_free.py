"""Quantize with llm-compressor's own model_free_ptq and compare: `python compare_model_free.py SOURCE OUT SCHEME OURS`.

As shipped it shares the NVFP4 global scale of gate_proj and up_proj directly under `mlp` only, not within experts; that
is mended first. Prints how many tensors of OURS are bit-identical to its result.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from llmcompressor import model_free_ptq
from llmcompressor.entrypoints.model_free import microscale
from safetensors import safe_open

GATE = re.compile(r"(.*\.mlp\.(?:experts\.\d+|shared_expert))\.gate_proj\.weight$")


def share_scales_within_experts() -> None:
    original = microscale.get_fused_names
    part = r"mlp\.(?:experts\.\d+|shared_expert)"
    pattern = rf"^(?P<prefix>.+?)\.(?P<mlp>{part})\.gate_proj\.weight$"
    microscale.DEFAULT_FUSED_MAPPINGS[pattern] = ["{prefix}.{mlp}.up_proj.weight"]

    def fused(names: Iterable[str]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        have = list(names)
        matched, unmatched = original(have)
        gates = [match for name in have if (match := GATE.match(name))]
        pairs = [{"gate": gate[0], "up": f"{gate[1]}.up_proj.weight"} for gate in gates]
        return matched + [pair for pair in pairs if pair["up"] in have], unmatched

    converter = importlib.import_module("llmcompressor.entrypoints.model_free.converter")
    converter.get_fused_names = fused


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as stream:
            found |= {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (no mapping)
    return found


def bits(value: torch.Tensor) -> torch.Tensor:
    return value.contiguous().view(-1).view(torch.uint8)


def main(source: str, out: str, scheme: str, ours: str) -> None:
    share_scales_within_experts()
    ignore = json.loads((Path(ours) / "config.json").read_text())["quantization_config"]["ignore"]
    model_free_ptq(source, out, scheme, ignore=[*ignore, "re:.*norm.*"], max_workers=1, device="cpu")
    theirs, mine = tensors(Path(out)), tensors(Path(ours))
    equal = [name for name in theirs if name in mine and torch.equal(bits(theirs[name]), bits(mine[name]))]
    print(json.dumps({"theirs": len(theirs), "ours": len(mine), "identical": len(equal)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
