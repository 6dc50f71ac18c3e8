"""Rows for experts: any that may be, and what they say in plain Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

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
    scales = np.ones((len(rows), hidden // 32), np.float32)
    return Routed.of(
        layer,
        np.array(experts, np.int32),
        offsets.astype(np.int32),
        np.array([at for at, _ in entries], np.int32),
        np.array([weight for _, weight in entries], np.float32),
        (scales, values.astype(np.int8)) if rounded else values.astype(np.float32),
    )


def changed(routed: Routed, **arrays: Any) -> Routed:
    """With other arrays of the same size."""
    kept = {name: arrays.get(name, getattr(routed, name)) for name in ("experts", "offsets", "index", "weights")}
    if routed.rounded:
        return Routed.of(routed.layer, **kept, values=(arrays.get("scale", routed.scale), arrays.get("q", routed.q)))
    return Routed.of(routed.layer, **kept, values=arrays.get("x", routed.x))


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
    if routed.rounded:
        return (routed.q * np.repeat(routed.scale, 32, axis=1)).tolist()
    return routed.x.tolist()
