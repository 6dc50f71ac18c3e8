"""A route: its nodes in order, and its progress."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.placement.partition import Placement


@dataclass
class Path:
    """A route: its nodes in order, and its progress."""

    epoch: int
    nodes: tuple[int, ...]
    placement: Placement
    keep: dict[int, range] = field(default_factory=dict[int, range])
    """Layers of each node whose keys and values go on being good."""

    def layers(self, node: int) -> range:
        stage = self.placement.stages[self.nodes.index(node)]
        return range(stage.first, stage.end)
