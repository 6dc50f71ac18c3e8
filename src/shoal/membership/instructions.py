"""What the head's loop is told to carry out."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.placement.partition import Placement


@dataclass(frozen=True)
class RefuseNode:
    """Send a node away: it was not admitted, or it is no longer listened to."""

    node: int
    reason: str
    again: bool = False
    """It may join anew."""


@dataclass(frozen=True)
class Dismiss:
    """Send a node home in peace: its layers have been moved."""

    node: int
    reason: str


@dataclass(frozen=True)
class LoadStage:
    """Make layers ready beside whatever runs. Keys and values of `keep` stay good when the epoch is entered."""

    node: int
    epoch: int
    stage: int
    stages: int
    first: int
    end: int
    keep: range
    kv_tokens: int


@dataclass(frozen=True)
class LinkStage:
    """Enter the epoch and connect to the next stage, or (next is None) to the head."""

    node: int
    epoch: int
    next: int | None


@dataclass(frozen=True)
class RestStage:
    """No longer a part of the route: free keys and values, keep the weights."""

    node: int
    epoch: int


@dataclass(frozen=True)
class Pause:
    """Let the steps in flight end, send no more, and say so."""

    epoch: int


@dataclass(frozen=True)
class Cut:
    """The route is gone: take nothing from it any more. Its requests wait."""

    epoch: int
    reason: str


@dataclass(frozen=True)
class Serve:
    """All stages are linked: open the route, fill the spans, go on."""

    epoch: int
    first: int
    """The node of stage 0."""
    placement: Placement
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Report:
    """Something that people should read."""

    message: str


Instruction = RefuseNode | Dismiss | LoadStage | LinkStage | RestStage | Pause | Cut | Serve | Report
