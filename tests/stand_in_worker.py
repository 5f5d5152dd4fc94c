"""A shell script in the place of the quantizer's worker: tells one step, then ends as told. And a model for it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.server import model_folder

# Called as the real one: PYTHON -m quantize.worker run JOB. A progress line as quantize/progress.py writes it.
SCRIPT = """#!/bin/sh
echo $$ > {folder}/pid
for done in 1 2; do
  echo '{{"stage": "quantize", "done": '$done', "total": 4, "layer": "layers.0", "seconds_left": 3.0,' \
    '"ram_bytes": 1000000, "time": '$(date +%s.%N)'}}' >> "$4/progress.jsonl"
done
echo "the stand-in is at work"
while [ ! -e {folder}/end ]; do
  kill -0 {tests} || exit 9  # a test that failed leaves nothing behind
  sleep 0.05
done
. {folder}/end
"""


@dataclass(frozen=True)
class StandIn:
    folder: Path

    def pid(self) -> int:
        return int((self.folder / "pid").read_text())

    def end(self, code: int, error: str = "") -> None:
        """Let the present job end so; the next one waits to be told again."""
        said = f"""echo '{json.dumps({"error": error})}' > "$4/outcome.json"; """ if error else ""
        growing = self.folder / "growing"
        growing.write_text(f"rm {self.folder}/end; {said}exit {code}\n")
        growing.rename(self.folder / "end")


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    script = folder / "stand-in"
    script.write_text(SCRIPT.format(folder=folder, tests=os.getpid()))
    script.chmod(0o755)
    monkeypatch.setenv("OMNI_QUANTIZE_PYTHON", str(script))
    return StandIn(folder)


def small_model(folder: Path) -> Path:
    """A causal language model's folder with one layer and no weights behind its headers."""
    attention = {f"model.layers.0.self_attn.{name}_proj.weight": [256, 256] for name in "qkvo"}
    dense = {f"model.layers.0.mlp.{name}_proj.weight": [256, 256] for name in ("gate", "up", "down")}
    shapes = {"model.embed_tokens.weight": [256, 256], **attention, **dense, "model.norm.weight": [256]}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    model_folder.write(folder / "model.safetensors", {name: ("BF16", shape) for name, shape in shapes.items()})
    return folder
