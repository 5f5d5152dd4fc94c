"""ModelOpt's NVFP4 as compressed-tensors' NVFP4, the same bits under other names: `python -m quantize.convert FROM TO`.

The packed weights and their block scales are carried over byte by byte. ModelOpt multiplies by weight_scale_2 and
input_scale; compressed-tensors stores their inverses, which readers invert again (vllm 0.30,
compressed_tensors_w4a4_nvfp4.py). Where some F32 has the old scale as its rounded inverse, that one is stored and the
weights come out bit by bit; where none has, they differ by one rounding of F32, which is measured and told.

Each file is read, renamed and written on its own; then all of it is proven from what lies on the disk.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize import card, checkpoint, estimate, folder, formats, modelopt, verify
from quantize.checkpoint import Checkpoint, Tensor
from quantize.errors import DoesNotFit, ModelUnusable, QuantizeError, VerificationFailed
from quantize.formats import Layer
from quantize.modelopt import Declared
from quantize.pipe import until_unread
from quantize.plan import module
from quantize.progress import Tell, silent
from quantize.verify.report import Check, Report
from quantize.weights import Weights

if TYPE_CHECKING:
    import torch

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_ROUNDING = 2.0**-22
"""Greatest relative difference that two F32 roundings can make."""
_INVERSES = {"weight_scale_2": "weight_global_scale", "input_scale": "input_global_scale"}
_CACHE_SCALE = re.compile(r"\.[kv]_(proj\.[kv]_)?scale$")


@dataclass(frozen=True, slots=True)
class Proof:
    """What comparing both folders on disk gave."""

    layers: int
    identical: int
    """Layers whose dequantized weights are the same F32 bit by bit."""
    greatest_difference: float
    """Relative, of any one weight of the other layers."""
    copied: int
    """Tensors that are the same bit by bit."""

    def sentence(self) -> str:
        return (
            f"Of {self.layers} layers {self.identical} dequantize to the same F32 bit by bit, the others within "
            f"{self.greatest_difference:.1e} of each weight (one rounding); {self.copied} tensors are copied unchanged."
        )


def require(source: Path, out: Path) -> None:
    """Raises what `convert` would raise before it begins, as far as headers tell."""
    found, _, _ = _convertible(source)
    folder.require_free(source, out)
    _require_room(found, out)


def convert(source: Path, out: Path, tell: Tell = silent, reports: Path | None = None) -> Proof:
    """Write `source` as compressed-tensors to `out`, which appears when it is whole and proven.

    reports: a folder that gets the verification too, of a source that is not sound or of the result.
    Raises ModelUnusable for what is not ModelOpt's NVFP4 or not sound, DoesNotFit, BadRequest for a taken name, and
    VerificationFailed where the result is not the same.
    """
    require(source, out)
    found, said, layers = _convertible(source)
    tell("check", 0, 1, "the source")
    _checked(verify.verify(source), reports).require()
    growing = folder.begin(source, out)
    try:
        with folder.room_told(out):
            where = _write(found, layers, growing, tell)
            _describe(found, said, layers, growing, where)
            proof = prove(found, layers, growing, tell)
            report = replace(verify.verify(growing), folder=str(out))
            same = Check("the same weights", True, proof.sentence())
            report = _checked(replace(report, checks=(*report.checks, same)), reports)
            report.require()
            verify.write(replace(report, folder=out.name), growing)  # whoever gets it: no paths of ours
            (growing / "README.md").write_text(card.converted(found, said.producer, report, proof.sentence()))
            folder.publish(out)
    finally:
        folder.discard(out)
    return proof


def _checked(report: Report, reports: Path | None) -> Report:
    if reports:
        verify.write(report, reports)
    return report


def _convertible(source: Path) -> tuple[Checkpoint, Declared, Mapping[str, Layer]]:
    found = checkpoint.read(source)
    said, layers = modelopt.declared(found), formats.layers(found.tensors)
    if (why := modelopt.unconvertible(found, said, layers)) or said is None:
        raise ModelUnusable(why)
    return found, said, layers


def _require_room(found: Checkpoint, out: Path) -> None:
    free = shutil.disk_usage(estimate.existing(out)).free
    if found.size > free:
        raise DoesNotFit(
            f"The result takes {found.size / estimate.GB:.1f} GB of disk and {free / estimate.GB:.1f} GB are free; "
            "name an output folder on another disk."
        )


def _write(found: Checkpoint, layers: Mapping[str, Layer], growing: Path, tell: Tell) -> dict[str, str]:
    from safetensors import safe_open
    from safetensors.torch import save_file

    where: dict[str, str] = {}
    for number, file in enumerate(found.files, 1):
        with safe_open(found.folder / file, "pt") as held:
            names = [tensor.name for tensor in found.tensors.values() if tensor.file == file]
            renamed = dict(_renamed(name, held.get_tensor(name), layers) for name in names)
        save_file(renamed, growing / file, metadata={"format": "pt"})
        where |= dict.fromkeys(renamed, file)
        tell("convert", number, len(found.files), file)
    return where


def _renamed(name: str, value: torch.Tensor, layers: Mapping[str, Layer]) -> tuple[str, torch.Tensor]:
    owner, last = module(name), name.rpartition(".")[2]
    if owner not in layers:
        return name, value
    if last == "weight":
        return f"{owner}.weight_packed", value
    if last in _INVERSES:
        return f"{owner}.{_INVERSES[last]}", inverse(value)
    return name, value


def inverse(scale: torch.Tensor) -> torch.Tensor:
    """The F32 [1] whose own rounded inverse is nearest to `scale`: one of three neighbours."""
    import torch

    exact = scale.float().reshape(1)
    middle = exact.reciprocal()
    around = [torch.nextafter(middle, torch.full_like(middle, end)) for end in (0.0, float("inf"))]
    return min([middle, *around], key=lambda near: float((near.reciprocal().double() - exact.double()).abs()))


def _describe(
    found: Checkpoint, said: Declared, layers: Mapping[str, Layer], growing: Path, where: Mapping[str, str]
) -> None:
    section = folder.quantization_config(_scheme(layers), _kept(found, layers), [f"{name}.weight" for name in layers])
    if said.kv_cache == "FP8":
        section["kv_cache_scheme"] = {
            "num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True
        }  # fmt: skip
    folder.finish(found, growing, section, where)


def _kept(found: Checkpoint, layers: Mapping[str, Layer]) -> list[str]:
    return [name for name in found.tensors if module(name) not in layers and not _CACHE_SCALE.search(name)]


def _scheme(layers: Mapping[str, Layer]) -> Any:
    from compressed_tensors.config import CompressionFormat
    from compressed_tensors.quantization import preset_name_to_scheme

    calibrated = any("input_scale" in layer.tensors for layer in layers.values())
    scheme = preset_name_to_scheme("NVFP4" if calibrated else "NVFP4A16", ["Linear"])
    return scheme.model_copy(update={"format": CompressionFormat.nvfp4_pack_quantized.value})


def prove(found: Checkpoint, layers: Mapping[str, Layer], growing: Path, tell: Tell = silent) -> Proof:
    """Compare both folders as they lie on the disk. Raises VerificationFailed with the first tensor that differs."""
    result = checkpoint.read(growing)
    before, after = Weights(found), Weights(result)
    tell("verify", 0, len(layers), "tensors that are copied")
    copied = _copied(found, result, layers, before, after)
    identical, greatest = 0, 0.0
    for number, layer in enumerate(layers.values(), 1):
        difference = _difference(layer, result, before, after)
        if difference > _ROUNDING:
            raise VerificationFailed(f"The weights of {layer.name} changed by {difference:.1e}; nothing was written.")
        identical += difference == 0.0
        greatest = max(greatest, difference)
        tell("verify", number, len(layers), layer.name)
    return Proof(len(layers), identical, greatest, copied)


def _copied(found: Checkpoint, result: Checkpoint, layers: Mapping[str, Layer], before: Weights, after: Weights) -> int:
    import torch

    same = [tensor for tensor in found.tensors.values() if module(tensor.name) not in layers]
    for tensor in same:
        held = result.tensors.get(tensor.name)
        if held is None or not torch.equal(_bits(before.get(tensor)), _bits(after.get(held))):
            raise VerificationFailed(f"{tensor.name} is not what it was; nothing was written.")
    return len(same)


def _bits(value: torch.Tensor) -> torch.Tensor:
    import torch

    return value.contiguous().reshape(-1).view(torch.uint8)


def _difference(layer: Layer, result: Checkpoint, before: Weights, after: Weights) -> float:
    """Greatest relative difference of one weight, each side dequantized by its own format's rule."""
    exact = _by_modelopt({last: before.get(tensor) for last, tensor in layer.tensors.items()})
    made = _by_compressed_tensors({last: after.get(tensor) for last, tensor in _own(result, layer.name)})
    distance = (made.double() - exact.double()).abs() / exact.double().abs().clamp_min(1e-300)
    return float(distance.max())


def _own(result: Checkpoint, name: str) -> Iterator[tuple[str, Tensor]]:
    for last in ("weight_packed", "weight_scale", "weight_global_scale"):
        if (tensor := result.tensors.get(f"{name}.{last}")) is None:
            raise VerificationFailed(f"{name}.{last} is missing in the result; nothing was written.")
        yield last, tensor


def _by_modelopt(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """F32 [out, in] by ModelOpt's rule: code * (weight_scale * weight_scale_2), the even column in the low nibble."""
    import torch

    codes = parts["weight"]
    nibbles = torch.stack([codes & 0xF, codes >> 4], dim=-1).reshape(codes.shape[0], -1).long()
    values = torch.tensor([*_E2M1, *(-value for value in _E2M1)])[nibbles]
    scale = parts["weight_scale"].float() * parts["weight_scale_2"].float()
    return values * scale.repeat_interleave(16, dim=1)


def _by_compressed_tensors(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """F32 [out, in] with compressed-tensors' own unpacking, and the global scale inverted first, as vLLM does."""
    import torch
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

    packed = parts["weight_packed"]
    rows, columns = packed.shape
    values: torch.Tensor = unpack_fp4_from_uint8(packed, rows, columns * 2, dtype=torch.float32)
    scale = parts["weight_scale"].float() * parts["weight_global_scale"].reciprocal()
    return values * scale.repeat_interleave(16, dim=1)


def main() -> int:
    """Exit status 0: done, the proof on stdout; 1: refused, with one sentence."""
    parser = argparse.ArgumentParser(prog="python -m quantize convert", description=__doc__)
    parser.add_argument("folder", type=Path, help="ModelOpt's NVFP4 checkpoint")
    parser.add_argument("output", type=Path)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        proof = convert(asked.folder, asked.output, _print)
    except QuantizeError as error:
        print(json.dumps({"error": str(error)}))
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"folder": str(asked.output), **asdict(proof)}))
    print(proof.sentence(), file=sys.stderr)
    return 0


def _print(stage: str, done: int, total: int, layer: str = "") -> None:
    if stage == "convert":
        print(f"{done} of {total}: {layer}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(until_unread(main))
