"""Is a quantized checkpoint what it claims to be? Everything that can be told from the files, without running them.

Works on anybody's checkpoint. With the source beside it, every tensor is accounted for, what must not change is
compared bit by bit, and each layer's weights are compared with the original's. `quantize.measure` runs the models.
"""

from __future__ import annotations

from pathlib import Path

from quantize import checkpoint, formats
from quantize.progress import Tell, silent
from quantize.verify import against, alone
from quantize.verify.against import Pair, or_infinite
from quantize.verify.described import described
from quantize.verify.names import names
from quantize.verify.report import Report, write
from quantize.weights import Weights

__all__ = ["Report", "verify", "write"]
_SHOWN = 10


def verify(folder: Path, source: Path | None = None, tell: Tell = silent) -> Report:
    """Raises ModelUnusable where a folder cannot be read at all; any other fault is in the report."""
    result = checkpoint.read(folder)
    found = formats.layers(result.tensors)
    weights = Weights(result)
    checks = [*alone.checks(result, found, weights), names(result, found), described(result, found)]
    if source is None:
        return Report(str(folder), "", tuple(checks))
    original = checkpoint.read(source)
    pair = Pair(result, original, found, weights, Weights(original))
    errors = tuple(against.errors(pair, tell))
    checks += [against.accounted(pair), against.side_files(pair), against.identical(pair)]
    checks.append(against.precise(errors, pair))
    worst = sorted(errors, key=lambda error: -or_infinite(error.relative))[:_SHOWN]
    return Report(
        str(folder), str(source), tuple(checks), tuple(worst),
        against.by_part(original, errors), depth_error=against.by_depth(original, errors),
    )  # fmt: skip
