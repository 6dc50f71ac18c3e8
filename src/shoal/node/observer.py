"""What a coordinator is told about a model that it serves, and whom it tells about events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from shoal.config import EngineSettings
from shoal.control import messages as control
from shoal.models.manifest import Manifest
from shoal.node.interruption import Interruption
from shoal.pipeline.timing import StepTiming
from shoal.placement.cost import ModelCost
from shoal.request import TokenChunk
from shoal.scheduler.limits import ALONE, Batching


@dataclass(frozen=True)
class Served:
    """A model as the cluster sees it."""

    name: str
    reference: str
    """The reference by which nodes fetch it."""
    cost: ModelCost
    context: int
    """Most tokens of a sequence."""
    engine: EngineSettings
    pinned: frozenset[str] = frozenset()
    """Names of the nodes that may serve it; empty: all."""
    manifest: Manifest | None = None
    """What the model's files are; None: only its name is known."""
    files: Mapping[str, Path] = field(default_factory=dict[str, Path])
    """Those of them that are on this machine, by hash."""
    priority: int = 0
    """Those of a higher one come first where memory is short."""
    batching: Batching = ALONE


class PipelineObserver(Protocol):
    """Counts what happens to one pipeline."""

    def step(self, timing: StepTiming, hops: tuple[float, ...]) -> None:
        """hops: seconds of the way to each stage, and of the way back."""
        ...

    def route(self, nodes: Sequence[str]) -> None:
        """The steps that follow run on these nodes' stages."""
        ...

    def interruption(self, ended: Interruption, cause: str) -> None:
        """cause: 'lost', 'left' or 'failed': what became of a node; 'broken': of the route; 'moved': layers were."""
        ...

    def sampled(self, chunks: list[TokenChunk]) -> None: ...
    def report(self, node: str, report: control.PipelineReport) -> None:
        """A node tells what it does for the pipeline."""
        ...


class NodeObserver(Protocol):
    """Counts what happens to nodes."""

    def heartbeat(self, node: str, heartbeat: control.Heartbeat) -> None: ...
    def gone(self, node: str) -> None: ...
