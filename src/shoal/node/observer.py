"""What a coordinator is told about the model that it serves, and whom it tells about events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shoal.control import messages as control
from shoal.node.interruption import Interruption
from shoal.pipeline.timing import StepTiming
from shoal.placement.cost import ModelCost
from shoal.request import TokenChunk


@dataclass(frozen=True)
class Served:
    """The model as the cluster sees it."""

    name: str
    reference: str
    """The reference by which nodes fetch it."""
    cost: ModelCost
    context: int
    """Most tokens of a sequence."""


class Observer(Protocol):
    """Counts what happens."""

    def step(self, timing: StepTiming, hops: tuple[float, ...]) -> None:
        """hops: seconds of the way to each stage, and of the way back."""
        ...

    def route(self, nodes: Sequence[str]) -> None:
        """The steps that follow run on these nodes' stages."""
        ...

    def interruption(self, ended: Interruption, cause: str) -> None:
        """cause: 'lost', 'left' or 'failed': what became of a node; 'broken': of the route; 'moved': layers were."""
        ...

    def heartbeat(self, node: str, heartbeat: control.Heartbeat) -> None: ...
    def gone(self, node: str) -> None: ...
    def sampled(self, chunks: list[TokenChunk]) -> None: ...
