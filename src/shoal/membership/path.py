"""A route: its nodes in order, its progress, and the messages for its nodes."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field, replace

from shoal.membership.instructions import HoldExperts, LinkStage, LoadStage, Serve
from shoal.placement.experts import covered
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
    takes: dict[int, int] = field(default_factory=dict[int, int])
    """Bytes of each member's memory; until it serves, beside the route before it."""
    alone: dict[int, int] = field(default_factory=dict[int, int])
    """The same, when the route before it is gone."""
    workers: tuple[int, ...] = ()
    """The nodes that hold the placement's other experts, in its order."""

    @property
    def members(self) -> tuple[int, ...]:
        """All nodes that have a part in it."""
        return (*self.nodes, *self.workers)

    def stands(self, members: Container[int]) -> bool:
        """Whether all of its stages are there."""
        return all(node in members for node in self.nodes)

    def goes_on(self, members: Container[int]) -> bool:
        """Whether it needs no others than these: all stages are there, and somebody has each expert."""
        return self.stands(members) and covered(self.placement.elsewhere, self.running(members).workers)

    def rename(self, old: str, new: str) -> None:
        """One of its nodes has another name from now on."""
        stages = tuple(replace(stage, node=new) if stage.node == old else stage for stage in self.placement.stages)
        workers = tuple(replace(plan, node=new) if plan.node == old else plan for plan in self.placement.workers)
        self.placement = replace(self.placement, stages=stages, workers=workers)

    def layers(self, node: int) -> range:
        stage = self.placement.stages[self.nodes.index(node)]
        return range(stage.first, stage.end)

    def running(self, members: Container[int]) -> Placement:
        """Its placement, without workers that were lost since: one that joined again has another number."""
        left = tuple(plan for node, plan in zip(self.workers, self.placement.workers, strict=True) if node in members)
        return replace(self.placement, workers=left)

    @property
    def layout(self) -> str:
        """For people."""
        experts = [f"{plan.node} {sum(map(len, plan.table))} experts" for plan in self.placement.workers]
        return ", ".join([*(f"{stage.node} {stage.first}-{stage.end - 1}" for stage in self.placement.stages), *experts])

    def load(self) -> list[LoadStage | HoldExperts]:
        count, placement = len(self.nodes), self.placement
        workers = list(zip(self.workers, placement.workers, strict=True))
        tables = tuple((node, plan.table) for node, plan in workers)
        stages = [
            LoadStage(
                node,
                self.epoch,
                i,
                count,
                stage.first,
                stage.end,
                self.keep[node],
                placement.kv_tokens,
                stage.memory,
                tables,
                placement.elsewhere if tables else (),
                stage.asking,
            )
            for i, (node, stage) in enumerate(zip(self.nodes, placement.stages, strict=True))
        ]
        return [*stages, *(HoldExperts(node, self.epoch, plan.table, plan.memory, plan.streamed > 0) for node, plan in workers)]

    def link(self) -> list[LinkStage]:
        following: list[int | None] = [*self.nodes[1:], None]
        return [LinkStage(node, self.epoch, after) for node, after in zip(self.nodes, following, strict=True)]

    def serve(self) -> Serve:
        kept = spans([(self.layers(node), self.keep[node]) for node in self.nodes], self.placement.stages[-1].end)
        return Serve(self.epoch, self.nodes[0], self.placement, tuple(kept))
