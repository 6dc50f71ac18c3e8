"""Roles by chance, so that nodes change them far more often than a plan that goes by speed would have them do."""

from __future__ import annotations

from random import Random

from shoal.errors import CapacityError
from shoal.placement.expert_moves import Nodes, Residencies
from shoal.placement.moves import Moves
from shoal.placement.partition import Placement
from shoal.placement.roles import RoleMoves, assigned

_WHIMS = 0.5


class Whims(RoleMoves):
    def __init__(self, moves: Moves, rng: Random) -> None:
        super().__init__(moves)
        self._rng = rng

    def first(self, nodes: Nodes, residencies: Residencies) -> Placement:
        return self._whim(nodes, residencies, None) or super().first(nodes, residencies)

    def recover(self, old: Placement, nodes: Nodes, residencies: Residencies, tokens: int, beside: bool = False) -> Placement:
        return self._whim(nodes, residencies, old, beside) or super().recover(old, nodes, residencies, tokens, beside)

    def improve(self, now: Placement, nodes: Nodes, residencies: Residencies, tokens: int) -> Placement | None:
        return self._whim(nodes, residencies, now, beside=True) or super().improve(now, nodes, residencies, tokens)

    def _whim(self, nodes: Nodes, residencies: Residencies, old: Placement | None, beside: bool = False) -> Placement | None:
        if self._rng.random() > _WHIMS:
            return None
        names = {node.name for node in nodes if node.auto and self._rng.random() < 0.5}
        try:
            placed = self._plan.first(assigned(nodes, names), residencies, old)
        except CapacityError:
            return None
        return placed if placed.workers and (old is None or self._fits(placed, old, nodes, residencies, beside)) else None
