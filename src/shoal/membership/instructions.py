"""What the head's loop is told to carry out."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.placement.partition import Placement


@dataclass(frozen=True)
class Refuse:
    node: int
    reason: str


@dataclass(frozen=True)
class LoadStage:
    node: int
    epoch: int
    stage: int
    stages: int
    first: int
    end: int
    kv_tokens: int


@dataclass(frozen=True)
class LinkStage:
    """Connect to the next stage, or (next is None) to the head."""

    node: int
    epoch: int
    next: int | None


@dataclass(frozen=True)
class UnloadStage:
    node: int
    epoch: int


@dataclass(frozen=True)
class Serve:
    """All stages are linked: open the route and take requests."""

    epoch: int
    first: int
    """The node of stage 0."""
    placement: Placement


@dataclass(frozen=True)
class Abandon:
    """The route is gone: end the requests that ran on it."""

    reason: str


@dataclass(frozen=True)
class Report:
    """Something that people should read."""

    message: str


Instruction = Refuse | LoadStage | LinkStage | UnloadStage | Serve | Abandon | Report
