"""What can happen to a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shoal.pipeline_id import PipelineId
from shoal.placement.profile import NodeProfile


@dataclass(frozen=True)
class Joined:
    node: int
    incarnation: int
    """Of the node's process: a different one at the same address means that the node was started again."""
    profile: NodeProfile
    host: str
    tensor_port: int
    version: str
    loaded: Mapping[PipelineId, tuple[range, ...]] = field(default_factory=dict[PipelineId, tuple[range, ...]])
    """Layers whose weights it still holds, of pipelines that are served here."""


@dataclass(frozen=True)
class Left:
    node: int
    reason: str
    graceful: bool = False
    """Whether the node itself announced it."""


@dataclass(frozen=True)
class Heard:
    node: int


@dataclass(frozen=True)
class StageLoaded:
    node: int
    epoch: int
    weight_bytes: int
    runtime: str


@dataclass(frozen=True)
class StageLinked:
    node: int
    epoch: int


@dataclass(frozen=True)
class StageFailed:
    node: int
    epoch: int
    reason: str


@dataclass(frozen=True)
class RouteBroken:
    """The head's own connections to the route ended, or a stage reported an error."""

    epoch: int
    reason: str


@dataclass(frozen=True)
class RoutePaused:
    """All steps in flight are done, and no more are sent."""

    epoch: int


@dataclass(frozen=True)
class RouteFilled:
    """The route is open, and every layer's keys and values are good."""

    epoch: int


@dataclass(frozen=True)
class DrainAsked:
    node: int


@dataclass(frozen=True)
class MemoryCapped:
    """An operator limits the memory of a node. memory: bytes; None: no limit but its own."""

    node: int
    memory: int | None


@dataclass(frozen=True)
class SpeedSeen:
    """How many times slower a stage runs than its node measured, relative to the other stages."""

    node: int
    slower: float


@dataclass(frozen=True)
class Tick:
    """Time passed."""


OfRoute = StageLoaded | StageLinked | StageFailed | RouteBroken | RoutePaused | RouteFilled
"""Each names the epoch of its route."""

Event = Joined | Left | Heard | DrainAsked | MemoryCapped | SpeedSeen | Tick | OfRoute
