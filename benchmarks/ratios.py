"""Predicted times beside measured ones, as a figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from statistics import median

_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728")
_SIZE, _MARGIN = 420, 60


@dataclass(frozen=True)
class Point:
    model: str
    share: float
    """Of the weights, in memory."""
    predicted: float
    measured: float
    """Both in seconds."""


def error(points: Iterable[Point]) -> float:
    """The median of |predicted / measured - 1|."""
    return median(abs(point.predicted / point.measured - 1) for point in points)


def drawn(points: Sequence[Point], title: str) -> str:
    """SVG: both axes logarithmic, the diagonal where predictions are right, and 15 % to both sides. Hollow points are streamed."""
    every = [time * 1e3 for point in points for time in (point.predicted, point.measured)]
    low, high = floor(log10(min(every))), ceil(log10(max(every)))

    def at(ms: float) -> float:
        return _MARGIN + (log10(ms) - low) / (high - low) * _SIZE

    def x(ms: float) -> str:
        return f"{at(ms):.1f}"

    def y(ms: float) -> str:
        return f"{_SIZE + 2 * _MARGIN - at(ms):.1f}"

    total, first, last = _SIZE + 2 * _MARGIN, 10.0**low, 10.0**high
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{total}" font-family="sans-serif" font-size="12">',
        f'<rect width="{total}" height="{total}" fill="white"/>',
        f'<text x="{_MARGIN}" y="24" font-size="13">{_escaped(title)}: median error {error(points):.0%}</text>',
    ]
    for power in range(low, high + 1):
        ms = 10.0**power
        out += [
            f'<line x1="{x(ms)}" y1="{y(first)}" x2="{x(ms)}" y2="{y(last)}" stroke="#ddd"/>',
            f'<line x1="{x(first)}" y1="{y(ms)}" x2="{x(last)}" y2="{y(ms)}" stroke="#ddd"/>',
            f'<text x="{x(ms)}" y="{total - _MARGIN + 18}" text-anchor="middle">{ms:g}</text>',
            f'<text x="{_MARGIN - 8}" y="{y(ms)}" text-anchor="end">{ms:g}</text>',
        ]
    for factor, dashed in ((1.0, ""), (1.15, ' stroke-dasharray="4 3"'), (1 / 1.15, ' stroke-dasharray="4 3"')):
        begin, end = max(first, first / factor), min(last, last / factor)
        out.append(f'<line x1="{x(begin)}" y1="{y(begin * factor)}" x2="{x(end)}" y2="{y(end * factor)}" stroke="#888"{dashed}/>')
    models = list(dict.fromkeys(point.model for point in points))
    colours = dict(zip(models, _COLOURS, strict=False))
    for point in points:
        colour = colours[point.model]
        fill = colour if point.share >= 1 else "none"
        place = f'cx="{x(point.measured * 1e3)}" cy="{y(point.predicted * 1e3)}"'
        out.append(f'<circle {place} r="4" fill="{fill}" stroke="{colour}"/>')
    for i, model in enumerate(models):
        height = _MARGIN + 18 * (i + 1)
        out += [
            f'<circle cx="{_MARGIN + 14}" cy="{height - 4}" r="4" fill="{colours[model]}"/>',
            f'<text x="{_MARGIN + 24}" y="{height}">{_escaped(model)}</text>',
        ]
    middle = total / 2
    out += [
        f'<text x="{middle}" y="{total - 16}" text-anchor="middle">measured, ms (hollow: partly read from disk)</text>',
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">predicted, ms</text>',
        "</svg>",
    ]
    return "\n".join(out) + "\n"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
