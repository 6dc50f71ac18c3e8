"""A chart of what each resource did and when: as lines of text, or as an SVG image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from shoal.placement.timeline import WAITING, Span, busy, utilisation

IDLE = "·"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#994455", "#997700")
"""By kind of work, in order of appearance: a palette that colour-blind people can tell apart."""
_WIDTH, _ROW, _GAP, _LEFT = 1000, 14, 12, 90
"""Of an image, in its units: a timeline, a row of it, between resources, for their names."""


def text(spans: Sequence[Span], width: int = 100) -> str:
    """A line for each resource, of `width` characters: the letter of what it did for most of that part of the time, or a dot where it
    did nothing for more than half of it. Then what the letters mean, with the share of the time, and how long that is. "" for nothing."""
    if not spans:
        return ""
    began, length = _time(spans)
    letters = _letters(spans)
    names = {name: f"{name:<{max(len(span.resource) for span in spans)}}" for name in utilisation(spans)}
    lines: list[str] = []
    for name, used in utilisation(spans).items():
        mine = [span for span in spans if span.resource == name and span.what != WAITING]
        lines.append(f"{names[name]} {_cells(mine, letters, began, length / width, width)} {used:4.0%}")
    lines.append(f"{'':{len(next(iter(names.values())))}} {_scale(length, width)}")
    for (name, what), share in _shares(spans, length).items():
        lines.append(f"{letters.get(what, IDLE)} {name}, {what}: {share:.0%}")
    return "\n".join(lines) + "\n"


def svg(spans: Sequence[Span]) -> str:
    """An image. Spans of a resource that overlap lie in rows below each other; a pointer on one shows what it is."""
    began, length = _time(spans) if spans else (0.0, 1.0)
    colours = {what: _COLOURS[i % len(_COLOURS)] for i, what in enumerate(_letters(spans))}
    parts: list[str] = []
    top = _GAP
    for name, used in utilisation(spans).items():
        rows = _rows([span for span in spans if span.resource == name and span.what != WAITING])
        parts.append(f'<text x="0" y="{top + _ROW - 3}">{escape(name)} {used:.0%}</text>')
        for i, row in enumerate(rows):
            parts += [_bar(span, top + i * _ROW, began, length, colours[span.what]) for span in row]
        top += max(len(rows), 1) * _ROW + _GAP
    parts.append(f'<text x="{_LEFT}" y="{top}">0</text><text x="{_LEFT + _WIDTH}" y="{top}" text-anchor="end">{_duration(length)}</text>')
    top += _GAP + _ROW
    for i, (what, colour) in enumerate(colours.items()):
        x = _LEFT + i * 150
        parts.append(
            f'<rect x="{x}" y="{top - 10}" width="10" height="10" fill="{colour}"/><text x="{x + 14}" y="{top}">{escape(what)}</text>'
        )
    size = f'width="{_LEFT + _WIDTH}" height="{top + _GAP}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">{"".join(parts)}</svg>\n'


def _time(spans: Sequence[Span]) -> tuple[float, float]:
    """When it all begins, and how long it lasts."""
    began = min(span.began for span in spans)
    return began, max(max(span.ended for span in spans) - began, 1e-9)


def _letters(spans: Sequence[Span]) -> dict[str, str]:
    """By kind of work, in order of appearance: its first letter, or the next one that is free."""
    letters: dict[str, str] = {}
    for what in dict.fromkeys(span.what for span in spans if span.what != WAITING):
        wanted = [c for c in what.lower() if c in _LETTERS] + list(_LETTERS)
        letters[what] = next((c for c in wanted if c not in letters.values()), "?")
    return letters


def _cells(spans: Sequence[Span], letters: Mapping[str, str], began: float, step: float, width: int) -> str:
    covered: list[dict[str, list[Span]]] = [{} for _ in range(width)]
    for span in spans:
        first, end = int((span.began - began) / step), int((span.ended - began) / step)
        for cell in range(min(first, width - 1), min(end, width - 1) + 1):
            low, high = max(span.began, began + cell * step), min(span.ended, began + (cell + 1) * step)
            if high > low:
                covered[cell].setdefault(span.what, []).append(span._replace(began=low, ended=high))
    return "".join(_cell(cell, letters, step) for cell in covered)


def _cell(covered: Mapping[str, list[Span]], letters: Mapping[str, str], step: float) -> str:
    if busy(span for spans in covered.values() for span in spans) < step / 2:
        return IDLE
    return letters[max(covered, key=lambda what: busy(covered[what]))]


def _scale(length: float, width: int) -> str:
    end = _duration(length)
    return f"0{end:>{width - 1}}"


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def _shares(spans: Sequence[Span], length: float) -> dict[tuple[str, str], float]:
    """By resource and kind of work: the part of the time."""
    kinds = dict.fromkeys((span.resource, span.what) for span in spans)
    return {kind: busy(span for span in spans if (span.resource, span.what) == kind) / length for kind in kinds}


def _rows(spans: Sequence[Span]) -> list[list[Span]]:
    """In as few rows as it takes for none to overlap in one."""
    rows: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: (span.began, span.ended)):
        row = next((row for row in rows if row[-1].ended <= span.began), None)
        if row is None:
            rows.append([span])
        else:
            row.append(span)
    return rows


def _bar(span: Span, top: float, began: float, length: float, colour: str) -> str:
    x, width = _LEFT + (span.began - began) / length * _WIDTH, (span.ended - span.began) / length * _WIDTH
    of = f" of layer {span.layer}" if span.layer >= 0 else ""
    title = escape(f"{span.what}{of}, {_duration(span.ended - span.began)}")
    return f'<rect x="{x:.2f}" y="{top}" width="{width:.2f}" height="{_ROW - 2}" fill="{colour}"><title>{title}</title></rect>'
