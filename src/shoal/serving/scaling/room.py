"""Where replicas fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shoal.pipeline_id import PipelineId


@dataclass(frozen=True)
class ReplicaPlace:
    """For one replica. nodes: that it fits on; none: it fits nowhere. missing: bytes that it lacks; 0: not known."""

    nodes: tuple[str, ...] = ()
    missing: int = 0


RoomCheck = Callable[[Sequence[str], Sequence[PipelineId]], list[ReplicaPlace]]
"""A place for one more replica of each model named, in order: what the earlier take, the later do not have, and one that fits nowhere takes
nothing. The second argument: replicas to be counted as gone."""


def places_for(count: int) -> RoomCheck:
    """Room for so many replicas, of whatever model, on a node of their own each."""

    def check(models: Sequence[str], gone: Sequence[PipelineId]) -> list[ReplicaPlace]:
        return [ReplicaPlace((f"node-{i + 1}",)) if i < count + len(gone) else ReplicaPlace() for i in range(len(models))]

    return check
