"""What happened to a cluster, one typed entry each."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class EventKind(StrEnum):
    JOINED = "joined"
    """A node became a member."""
    REFUSED = "refused"
    """A node, or a link, was not let in."""
    SUSPECTED = "suspected"
    """A node was silent for half of the allowed time."""
    HEARD = "heard"
    """A suspected node is heard again."""
    LEFT = "left"
    """A node went as it was meant to."""
    LOST = "lost"
    """A node is gone without having announced it."""
    FAILED = "failed"
    """A node could not do its part."""
    FENCED = "fenced"
    """A route was given up; nothing from it is accepted any more."""
    PLACED = "placed"
    """A route was chosen."""
    LOADED = "loaded"
    """A node holds its part of the model."""
    SERVING = "serving"
    """A route serves."""
    REFILLED = "refilled"
    """Keys and values were filled anew."""
    RESUMED = "resumed"
    """Streams go on after an interruption."""
    RESPLIT = "resplit"
    """Layers move because another split is better."""
    GIVEN_UP = "given up"
    """A move of layers, or a drain, did not come about."""
    CAPPED = "capped"
    """An operator limited the memory of a node, or gave it back."""
    RENAMED = "renamed"
    """An operator gave a node another name."""
    DRAINING = "draining"
    """A node is to leave when its part has moved."""
    SHORT = "short"
    """The nodes cannot hold the model."""
    SLOW = "slow"
    """A stage is slower than its node measured."""
    RECOVERED = "recovered"
    """A slow stage keeps its pace again."""
    DEGRADED = "degraded"
    """Tokens are computed without experts that nobody has."""
    PREEMPTED = "preempted"
    """Sequences gave up their KV blocks to others."""
    REJECTED = "rejected"
    """Requests were refused."""
    CACHE = "cache"
    """Kept prompts were given up for want of KV blocks."""
    FETCHED = "fetched"
    """A model that an operator asked for is here, or could not be had."""
    SCALED = "scaled"
    """A copy of a model was added or is to stop, or nodes are there that were asked for."""
    AWAY = "away"
    """Another server that answers for models takes no requests."""
    BACK = "back"
    """It takes requests, for the first time or again."""
    FAULT = "fault"
    """Something unexpected went wrong in the head."""


WARNINGS = frozenset(
    {
        EventKind.REFUSED,
        EventKind.SUSPECTED,
        EventKind.LOST,
        EventKind.FAILED,
        EventKind.FENCED,
        EventKind.GIVEN_UP,
        EventKind.SHORT,
        EventKind.SLOW,
        EventKind.DEGRADED,
        EventKind.REJECTED,
        EventKind.AWAY,
        EventKind.FAULT,
    }
)
"""Kinds that somebody should look at."""


class ClusterEvent(msgspec.Struct, frozen=True):
    """number: ascending, from 1, in one head. node: its name; '': it is about no single node. message: in words, may contain what
    nodes call themselves. figures: by name; seconds unless the name says otherwise, such as tokens, layers, bytes, epoch or count."""

    number: int
    at: float
    kind: EventKind
    message: str
    node: str = ""
    figures: dict[str, float] = {}


class EventPage(msgspec.Struct, frozen=True):
    """Events in order. latest: number of the newest event there is. oldest: of the oldest that is kept."""

    events: list[ClusterEvent]
    latest: int
    oldest: int
