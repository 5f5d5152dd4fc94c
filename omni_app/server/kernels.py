"""Which kernel will multiply a checkpoint's weights on a GPU, and why."""

from __future__ import annotations

from omni_app.hardware import Fact

OLDEST = (8, 0)
"""Ampere: the first with BF16, which all parts but the thinker are in."""
Capability = tuple[int, int]

_FP8_FIRST = (8, 9)
_BLACKWELL_FIRST = (10, 0)
_THOR = (11, 0)


def expected(form: str, capability: Capability) -> Fact[str]:
    """The kernel vLLM 0.30 takes for linear layers of this format. With moe_backend auto it says so in its log."""
    sm = f"sm_{capability[0]}{capability[1]}"
    if form == "nvfp4":
        return _nvfp4(capability, sm)
    if form in ("nvfp4a16", "mxfp4"):
        return Fact("Marlin, weight-only", f"{form} keeps activations in 16 bits, so weights are unpacked on the way")
    if form.startswith("w") or form in ("gptq", "awq"):
        return Fact("Marlin, weight-only", f"{form} is integer weights with 16-bit activations")
    if form == "fp8":
        if capability >= _FP8_FIRST:
            return Fact("native FP8", f"{sm} multiplies FP8")
        return Fact("Marlin, weight-only", f"{sm} does not multiply FP8, so weights are unpacked on the way")
    return Fact("BF16 (Triton for the experts)", "the weights are not quantized")


def _nvfp4(capability: Capability, sm: str) -> Fact[str]:
    if capability == _THOR:
        return Fact(
            "native FP4 (CUTLASS), or else Marlin",
            f"Blackwell ({sm}) multiplies FP4, but vLLM has a kernel for it only if its wheel was built for {sm}",
        )
    if capability >= _BLACKWELL_FIRST:
        return Fact("native FP4 (W4A4)", f"Blackwell ({sm}) multiplies FP4")
    return Fact(
        "Marlin, weight-only",
        f"{sm} is older than Blackwell and does not multiply FP4: weights stay 4-bit in memory, sums are 16-bit",
    )
