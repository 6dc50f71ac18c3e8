"""What happens to a cluster."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.placement.profile import NodeProfile


@dataclass(frozen=True)
class Joined:
    node: int
    incarnation: int
    profile: NodeProfile
    host: str
    tensor_port: int
    version: str


@dataclass(frozen=True)
class Left:
    node: int
    reason: str


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
    """The head's own connections to the route ended."""

    epoch: int
    reason: str
    opened: bool
    """Whether it had ever been open."""


@dataclass(frozen=True)
class Tick:
    """Time passed."""


Event = Joined | Left | Heard | StageLoaded | StageLinked | StageFailed | RouteBroken | Tick
