"""What the Quantize page draws: bars of bytes, curves, tables. HTML and SVG, without a script."""

from __future__ import annotations

import html
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from omni_app.jobs import DepthError, Report, Step
from omni_app.quantizing import Estimate, Part
from omni_app.server.forecast import Forecast

_HUES = (215, 28, 152, 265, 340, 190, 48, 95)
_LEAST_SHARE = 0.012
"""Of all bytes, below which a part is drawn together with the other small ones."""
_WIDTH, _HEIGHT = 600, 120
_POINTS = 300


def size(count: float) -> str:
    """Bytes for people: 27.5 GB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}" if count < 100 * factor else f"{count / factor:,.0f} {unit}"
    return f"{count / 1e3:.3g} kB"


def parameters(count: int) -> str:
    """35.26 B, 1.84 M."""
    millions = count / 1e6
    return f"{millions / 1e3:.4g} B" if millions >= 100 else f"{millions:.3g} M"


def duration(seconds: float) -> str:
    """2 h 5 min, 12 min, 40 s."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 90 else f"{minutes} min"


def estimate_html(found: Estimate, served: Sequence[Forecast]) -> str:
    """Bytes now and after, what the run takes, whether it fits, where the result could be served, and every part."""
    return (
        f'<div class="quantize">{_bytes(found)}{_tiles(found)}{_verdict(found)}{_served(served)}{_parts(found)}</div>'
    )


def _bytes(found: Estimate) -> str:
    large = [part for part in found.parts if part.bytes_now >= _LEAST_SHARE * found.bytes_now]
    large.sort(key=lambda part: -part.bytes_now)
    pieces = [(part.label, part.bytes_now, part.bytes_after) for part in large[: len(_HUES) - 1]]
    rest = [sum(values) for values in zip(*(piece[1:] for piece in pieces), strict=True)]
    if found.bytes_now - rest[0] > 0:
        pieces.append(("Other parts", found.bytes_now - rest[0], found.bytes_after - rest[1]))
    now = [(label, before) for label, before, _ in pieces]
    after = [(label, then) for label, _, then in pieces]
    most = max(found.bytes_now, found.bytes_after)
    legend = "".join(
        f"<li>{_swatch(index)}{html.escape(label)} <b>{_change(before, then)}</b></li>"
        for index, (label, before, then) in enumerate(pieces)
    )
    return f'<figure class="bytes">{_bar("Now", now, most)}{_bar("After", after, most)}<ul>{legend}</ul></figure>'


def _bar(name: str, pieces: Sequence[tuple[str, int]], most: int) -> str:
    total = sum(count for _, count in pieces)
    told = ", ".join(f"{label} {size(count)}" for label, count in pieces)
    segments = "".join(
        f'<i style="width:{100 * count / most:.2f}%;{_colour(index)}" title="{html.escape(label)}: {size(count)}"></i>'
        for index, (label, count) in enumerate(pieces)
    )
    label = html.escape(f"{name} {size(total)}: {told}")
    return (
        f'<div class="row" role="img" aria-label="{label}"><span>{name}</span><div>{segments}</div>'
        f"<b>{size(total)}</b></div>"
    )


def _colour(index: int) -> str:
    return f"--hue:{_HUES[index % len(_HUES)]}"


def _swatch(index: int) -> str:
    return f'<i class="swatch" style="{_colour(index)}"></i>'


def _change(before: float, after: float) -> str:
    return size(before) if before == after else f"{size(before)} → {size(after)}"


def _tiles(found: Estimate) -> str:
    gpu = f"{size(found.gpu_bytes)}, if captured there" if found.gpu_bytes else "none needed"
    tiles = (
        ("Parameters", parameters(found.parameters)),
        ("Size", f"{size(found.bytes_now)} → {size(found.bytes_after)}"),
        ("Disk", size(found.disk_bytes)),
        ("Memory of the run", size(found.ram_bytes)),
        ("GPU memory of the run", gpu),
        ("Time, about", duration(found.seconds)),
    )  # fmt: skip
    return f'<dl class="tiles">{"".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in tiles)}</dl>'


def _verdict(found: Estimate) -> str:
    told = [f'<p class="verdict no" role="alert">{html.escape(why)}</p>' for why in found.refusals]
    told = told or ['<p class="verdict yes">It fits on this machine.</p>']
    if found.left:
        why = html.escape(next(iter(found.left.values())))
        told.append(f'<p class="verdict">{len(found.left)} layers of the chosen parts stay BF16: {why}.</p>')
    return "".join(told)


def _served(found: Sequence[Forecast]) -> str:
    if not found:
        return ""
    rows = "".join(f'<li class="{"yes" if one.users else "no"}">{_forecast(one)}</li>' for one in found)
    return f'<div class="served"><h3>Where the result could be served</h3><ul>{rows}</ul></div>'


def _forecast(one: Forecast) -> str:
    how = "with speech" if one.speech else "text only"
    told = f"{how}, {one.users} {'user' if one.users == 1 else 'users'} at a time" if one.users else "too small"
    return f"<b>{html.escape(one.gpu)}</b> {told}"


def _parts(found: Estimate) -> str:
    rows = "".join(map(_part, sorted(found.parts, key=lambda part: (not part.choosable, -part.bytes_now))))
    quantized = sum(part.quantized for part in found.parts)
    fixed = sum(not part.choosable for part in found.parts)
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Part", "Parameters", "Size", "Why"))
    return (
        f"<details><summary>Every part: {quantized} quantized, {fixed} that must stay as they are, and why</summary>"
        f'<table class="facts parts"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></details>'
    )


def _part(part: Part) -> str:
    return (
        f'<tr><th scope="row">{html.escape(part.label)}</th><td>{part.parameters / 1e6:,.1f} M</td>'
        f"<td>{_change(part.bytes_now, part.bytes_after)}</td><td>{html.escape(part.why)}</td></tr>"
    )


def memory_html(steps: Sequence[Step]) -> str:
    """The worker's memory over time."""
    known = [step for step in steps if step.ram_bytes]
    if len(known) < 2:
        return ""
    begin, most = known[0].time, max(step.ram_bytes for step in known)
    thin = known[:: max(len(known) // _POINTS, 1)]
    points = [(step.time - begin, step.ram_bytes) for step in [*thin, known[-1]]]
    told = f"Memory of the worker: {size(known[-1].ram_bytes)} now, {size(most)} at most"
    return _curves("memory", told, {"": points}, most, f"after {duration(points[-1][0])}")


def depth_html(errors: Iterable[DepthError]) -> str:
    """The mean relative weight error of each part over the decoder's layers."""
    by_part: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for one in sorted(errors, key=lambda one: one.depth):
        if one.mean is not None:
            by_part[one.part.replace("_", " ")].append((one.depth, one.mean))
    if not by_part:
        return ""
    most = max(value for points in by_part.values() for _, value in points)
    last = max(x for points in by_part.values() for x, _ in points)
    return _curves("depth", f"Relative weight error by layer: {most:.3f} at most", by_part, most, f"layer {last:.0f}")


def _curves(kind: str, told: str, curves: Mapping[str, Sequence[tuple[float, float]]], most: float, end: str) -> str:
    right = max(x for points in curves.values() for x, _ in points) or 1
    lines = "".join(_line(index, points, right, most) for index, points in enumerate(curves.values()))
    legend = "".join(f"<li>{_swatch(index)}{html.escape(name)}</li>" for index, name in enumerate(curves) if name)
    return (
        f'<figure class="curve {kind}"><figcaption>{html.escape(told)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{html.escape(told)}">'
        f"{lines}</svg><p><span>0</span><span>{end}</span></p>{f'<ul>{legend}</ul>' if legend else ''}</figure>"
    )


def _line(index: int, points: Sequence[tuple[float, float]], right: float, most: float) -> str:
    drawn = [(x / right * _WIDTH, _HEIGHT - 4 - y / (most or 1) * (_HEIGHT - 12)) for x, y in points]
    if len(drawn) == 1:
        drawn = [(0, drawn[0][1]), (_WIDTH, drawn[0][1])]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
    return f'<polyline points="{path}" style="{_colour(index)}"/>'


def report_html(report: Report) -> str:
    """Checks, figures of quality, and errors, layer by layer."""
    head = "Verified" if report.passed else "The verification failed"
    rows = "".join(
        f'<tr class="{"ok" if check.passed else "fail"}"><th scope="row">{html.escape(check.name)}</th>'
        f"<td>{html.escape(check.detail)}</td></tr>"
        for check in sorted(report.checks, key=lambda check: check.passed)
    )
    missing = "".join(
        f"<p>Not measured: {html.escape(name)}, because {html.escape(why)}.</p>"
        for name, why in report.not_measured.items()
    )
    return (
        f'<div class="quantize report"><h3>{head}</h3><table class="facts checks"><tbody>{rows}</tbody></table>'
        f"{_quality(report)}{missing}{depth_html(report.depth_error)}{_worst(report)}</div>"
    )


def _quality(report: Report) -> str:
    rows = "".join(_meter(name, value, text) for name, value, text in _figures(report))
    return f'<table class="facts meters"><tbody>{rows}</tbody></table>' if rows else ""


def _figures(report: Report) -> Iterator[tuple[str, float | None, str]]:
    """Name, share of a full bar where it is one, and words."""
    found = {name: value for name, value in report.quality.items() if value is not None}
    if "agreement" in found:
        yield "Same next token as the original", found["agreement"], f"{found['agreement']:.1%}"
    if "perplexity" in found and "perplexity_before" in found:
        ratio = f" (× {found['perplexity_ratio']:.3f})" if "perplexity_ratio" in found else ""
        yield "Perplexity", None, f"{found['perplexity_before']:.2f} → {found['perplexity']:.2f}{ratio}"
    if "kl" in found:
        yield "KL divergence", None, f"{found['kl']:.4f} nats a token"
    if report.speech and report.speech.word_error_rate is not None:
        same = max(1 - report.speech.word_error_rate, 0)
        yield "Same words heard in its speech", same, f"{same:.0%}"


def _worst(report: Report) -> str:
    known = [(error.layer, error.relative or 0.0) for error in report.worst]
    if not known:
        return ""
    most = max(value for _, value in known) or 1
    rows = "".join(_meter(layer, value / most, f"{value:.4f}") for layer, value in known)
    return (
        f"<details><summary>The {len(known)} layers with the largest relative weight error</summary>"
        f'<table class="facts meters"><tbody>{rows}</tbody></table></details>'
    )


def _meter(name: str, share: float | None, text: str) -> str:
    bar = f'<i class="meter" style="--share:{share:.4f}"></i>' if share is not None else ""
    return f'<tr><th scope="row">{html.escape(name)}</th><td>{bar}{html.escape(text)}</td></tr>'
