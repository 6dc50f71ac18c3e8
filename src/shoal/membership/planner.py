"""What the state machine needs from a planner, which splits the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from shoal.placement.moves import Residency
from shoal.placement.partition import Placement
from shoal.placement.profile import NodeProfile


class Planner(Protocol):
    """Splits the model over nodes; raises CapacityError. See placement.moves.Moves."""

    def first(self, nodes: Sequence[NodeProfile], residencies: dict[str, Residency]) -> Placement: ...
    def recover(
        self, old: Placement, nodes: Sequence[NodeProfile], residencies: dict[str, Residency], tokens: int, beside: bool = False
    ) -> Placement: ...
    def improve(self, now: Placement, nodes: Sequence[NodeProfile], residencies: dict[str, Residency], tokens: int) -> Placement | None: ...
    def takes(self, placement: Placement, beside: Placement | None = None) -> Mapping[str, int]:
        """Bytes of each node's memory that it takes. beside: runs until this one does."""
        ...
