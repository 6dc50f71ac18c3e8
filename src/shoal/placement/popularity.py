"""How popular each expert is, from how many rows it has computed. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from shoal.placement.cost import ExpertsCost, ModelCost

ENOUGH = 32
"""Rows of an average expert of a layer before its use says something."""
_DOUBT = 1.0
"""Rows that every expert counts in addition: what was not used yet may be."""


def popular(model: ModelCost, rows: Mapping[int, Sequence[int]]) -> ModelCost:
    """The model with the popularity of its experts, where enough is known. rows: by layer, of each expert."""
    layers = list(model.layers)
    for at, layer in enumerate(layers):
        counts = rows.get(at, ())
        if layer.experts is not None and len(counts) == layer.experts.count and sum(counts) >= ENOUGH * layer.experts.count:
            layers[at] = replace(layer, experts=replace(layer.experts, popularity=_probabilities(layer.experts, counts)))
    return replace(model, layers=tuple(layers))


def _probabilities(experts: ExpertsCost, counts: Sequence[int]) -> tuple[float, ...]:
    """Of each, that a row chooses it; none above 1, and together as many as a row chooses."""
    weights = [count + _DOUBT for count in counts]
    certain = set[int]()
    while True:
        left = experts.chosen - len(certain)
        total = sum(weight for at, weight in enumerate(weights) if at not in certain)
        over = {at for at, weight in enumerate(weights) if at not in certain and weight * left > total}
        if not over:
            return tuple(1.0 if at in certain else weight * left / total for at, weight in enumerate(weights))
        certain |= over
