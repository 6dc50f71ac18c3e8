"""A route: its nodes in order, its progress, and the messages for its nodes."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.membership.instructions import LinkStage, LoadStage, Serve
from shoal.placement.moves import spans
from shoal.placement.partition import Placement


@dataclass
class Path:
    """A route: its nodes in order, and its progress."""

    epoch: int
    nodes: tuple[int, ...]
    placement: Placement
    keep: dict[int, range] = field(default_factory=dict[int, range])
    """Layers of each node whose keys and values stay good."""

    def layers(self, node: int) -> range:
        stage = self.placement.stages[self.nodes.index(node)]
        return range(stage.first, stage.end)

    @property
    def layout(self) -> str:
        """For people."""
        return ", ".join(f"{stage.node} {stage.first}-{stage.end - 1}" for stage in self.placement.stages)

    def load(self) -> list[LoadStage]:
        count, kv_tokens = len(self.nodes), self.placement.kv_tokens
        return [
            LoadStage(node, self.epoch, i, count, stage.first, stage.end, self.keep[node], kv_tokens, stage.memory)
            for i, (node, stage) in enumerate(zip(self.nodes, self.placement.stages, strict=True))
        ]

    def link(self) -> list[LinkStage]:
        following: list[int | None] = [*self.nodes[1:], None]
        return [LinkStage(node, self.epoch, after) for node, after in zip(self.nodes, following, strict=True)]

    def serve(self) -> Serve:
        kept = spans([(self.layers(node), self.keep[node]) for node in self.nodes], self.placement.stages[-1].end)
        return Serve(self.epoch, self.nodes[0], self.placement, tuple(kept))
