"""The main colours of a picture, in everyday words."""

from __future__ import annotations

import colorsys

from PIL import Image

_SAMPLE_SIDE = 96
_LEAST_SHARE = 0.12
_HUES = (
    (15, "red"), (42, "orange"), (68, "yellow"), (165, "green"), (195, "turquoise"), (255, "blue"),
    (290, "purple"), (335, "pink"), (360, "red"),
)  # fmt: skip
"""Upper end of each hue in degrees."""


def main_colours(image: Image.Image, count: int = 3) -> tuple[str, ...]:
    """Up to `count` colour names that cover a good part of the picture each, the commonest first."""
    small = image.convert("RGB")
    small.thumbnail((_SAMPLE_SIDE, _SAMPLE_SIDE))
    palette = small.quantize(16).convert("RGB")
    shares: dict[str, int] = {}
    for pixels, colour in palette.getcolors(maxcolors=16) or []:
        name = colour_name(*colour)  # type: ignore[misc]  # RGB gives three numbers
        shares[name] = shares.get(name, 0) + pixels
    total = small.width * small.height
    named = sorted(shares.items(), key=lambda item: -item[1])
    return tuple(name for name, pixels in named if pixels / total >= _LEAST_SHARE)[:count]


def colour_name(red: int, green: int, blue: int) -> str:
    """An everyday name for a colour given as 0..255 each."""
    hue, lightness, saturation = colorsys.rgb_to_hls(red / 255, green / 255, blue / 255)
    chroma = (max(red, green, blue) - min(red, green, blue)) / 255
    if lightness < 0.12 or lightness > 0.93 or saturation < 0.12 or chroma < 0.08:
        return _grey(lightness)
    name = next(name for end, name in _HUES if hue * 360 <= end)
    if name in ("orange", "red") and hue * 360 >= 10 and lightness < 0.45:
        return "brown"
    if name == "orange" and (lightness > 0.7 or saturation < 0.45):
        return "beige"
    return f"dark {name}" if lightness < 0.28 else name


def _grey(lightness: float) -> str:
    names = ((0.12, "black"), (0.35, "dark grey"), (0.65, "grey"), (0.88, "light grey"))
    return next((name for end, name in names if lightness < end), "white")
