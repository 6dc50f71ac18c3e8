"""The instructions that the head's loop carries out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shoal.observed.event import EventKind
from shoal.pipeline_id import PipelineId
from shoal.placement.experts import NO_ASKING, Asking, Table
from shoal.placement.partition import Placement


@dataclass(frozen=True)
class RefuseNode:
    """Send a node away: it was not admitted, or it counts as lost."""

    node: int
    reason: str
    again: bool = False
    """Whether it may join again."""


@dataclass(frozen=True)
class Dismiss:
    """Send a node home in peace: its layers have been moved."""

    node: int
    reason: str


@dataclass(frozen=True)
class LoadStage:
    """Load layers beside those that run. Keys and values of `keep` stay good when the epoch is entered."""

    node: int
    epoch: int
    stage: int
    stages: int
    first: int
    end: int
    keep: range
    kv_tokens: int
    weight_memory: int = 0
    """Bytes that the weights may take if they are streamed; 0: all are held."""
    workers: tuple[tuple[int, Table], ...] = ()
    """Nodes that hold experts for the stages, and which."""
    absent: Table = ()
    """Experts that no stage holds."""
    asking: Asking = NO_ASKING


@dataclass(frozen=True)
class HoldExperts:
    """Load experts, and run rows for the stages of the epoch."""

    node: int
    epoch: int
    table: Table
    memory: int = 0
    """Bytes that they may take; what does not fit is read from disk."""
    streamed: bool = False
    """Whether not all are expected to fit."""


@dataclass(frozen=True)
class LinkStage:
    """Enter the epoch and connect to the next stage, or (next is None) to the head."""

    node: int
    epoch: int
    next: int | None


@dataclass(frozen=True)
class RestStage:
    """The node has no stage any more: free keys and values, and keep the weights, but for layers where it is to hold experts."""

    node: int
    epoch: int


@dataclass(frozen=True)
class DropModel:
    """Free all that the node has in memory of a pipeline's model."""

    node: int
    pipeline: PipelineId


@dataclass(frozen=True)
class Pause:
    """Let the steps in flight finish, send no more, and report it."""

    epoch: int


@dataclass(frozen=True)
class Cut:
    """The route is gone: accept nothing from it any more. Its requests wait."""

    epoch: int
    reason: str


@dataclass(frozen=True)
class Serve:
    """All stages are linked: open the route, fill the spans, continue."""

    epoch: int
    first: int
    """The node that runs stage 0."""
    placement: Placement
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Report:
    """Something for people to read. node: its name, if it is about one. figures: see observed.event. pipeline: if it is about one."""

    kind: EventKind
    message: str
    node: str = ""
    figures: Mapping[str, float] = field(default_factory=dict[str, float])
    pipeline: PipelineId | None = None


OfRoute = LoadStage | HoldExperts | LinkStage | RestStage | Pause | Cut | Serve
"""Each names the epoch of its route."""

Instruction = OfRoute | RefuseNode | Dismiss | DropModel | Report
