"""Rows for experts: any that may be, and what they say in plain Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from shoal.wire.routed import Routed

Said = Counter[tuple[int, float]]
"""Of a row: its experts, each with its weight."""


def routed_of(rows: Sequence[Mapping[int, float]], layer: int = 0, hidden: int = 32, rounded: bool = True, first: int = 1) -> Routed:
    """rows: of each, the weights by expert. first: what the values of the first row are; those of the next are one more."""
    experts = sorted({expert for row in rows for expert in row})
    entries = [(at, row[expert]) for expert in experts for at, row in enumerate(rows) if expert in row]
    offsets = np.cumsum([0, *(sum(expert in row for row in rows) for expert in experts)])
    values = (np.arange(len(rows))[:, None] + first) * np.ones((1, hidden))
    return Routed(
        layer,
        np.array(experts, np.int32),
        offsets.astype(np.int32),
        np.array([at for at, _ in entries], np.int32),
        np.array([weight for _, weight in entries], np.float32),
        np.ones((len(rows) if rounded else 0, hidden // 32), np.float32),
        values.astype(np.int8) if rounded else np.zeros((0, hidden), np.int8),
        np.zeros((0, hidden), np.float32) if rounded else values.astype(np.float32),
    )


@st.composite
def any_routed(draw: DrawFn, layer: int | None = None, hidden: int | None = None, rounded: bool | None = None) -> Routed:
    weight = st.floats(-2, 2, width=32)
    row = st.dictionaries(st.integers(0, 9), weight, min_size=1, max_size=4)
    return routed_of(
        draw(st.lists(row, min_size=1, max_size=6)),
        draw(st.integers(0, 99)) if layer is None else layer,
        draw(st.sampled_from([32, 64, 96])) if hidden is None else hidden,
        draw(st.booleans()) if rounded is None else rounded,
        draw(st.integers(-9, 9)),
    )


def said(routed: Routed) -> list[Said]:
    """Of each row."""
    out: list[Said] = [Counter() for _ in range(routed.rows)]
    for at, expert in enumerate(routed.experts.tolist()):
        for entry in range(routed.offsets[at], routed.offsets[at + 1]):
            out[routed.index[entry]][expert, float(routed.weights[entry])] += 1
    return out


def values(routed: Routed) -> list[list[float]]:
    """Of each row, what is multiplied."""
    if len(routed.q):
        return (routed.q * np.repeat(routed.scale, 32, axis=1)).tolist()
    return routed.x.tolist()
