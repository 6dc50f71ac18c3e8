"""What is known about a model's load at one moment."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class ReplicaPhase(enum.Enum):
    LOADING = "loading"
    SERVING = "serving"
    STOPPING = "stopping"


@dataclass(frozen=True)
class ReplicaLoad:
    number: int
    state: ReplicaPhase = ReplicaPhase.SERVING
    slots: int = 1
    """Sequences that it can run at once."""
    running: int = 0
    tokens_per_second: float = 0.0
    """That it can do with full slots; 0: not known."""


@dataclass(frozen=True)
class ModelLoad:
    """Rates and percentiles are those of the last minute or so."""

    model: str
    replicas: tuple[ReplicaLoad, ...] = ()
    priority: int = 0
    """Of higher ones, when the room does not suffice for all."""
    waiting: int = 0
    """Requests that no replica has begun."""
    first_token_p95: float | None = None
    """Seconds; None: there was no first token."""
    utilisation: float = 0.0
    """Share of the slots of those that serve, 0 to 1."""
    requests_per_second: float = 0.0
    """That arrived."""
    tokens_per_second: float = 0.0
    slot_seconds: float = 0.0
    """For which a request takes a slot, on average; 0: not known."""
    idle: float = 0.0
    """Seconds since a request waited or ran."""
    load_seconds: float = 60.0
    """That it takes to load a replica."""
    nodes_per_replica: int = 1
    """Like those that are there; 0: no number of them suffices for one."""
    new_slots: int = 0
    """Of a replica, where there is none to ask; 0: not known."""

    def count(self, *states: ReplicaPhase) -> int:
        return sum(replica.state in states for replica in self.replicas)

    @property
    def serving(self) -> int:
        return self.count(ReplicaPhase.SERVING)

    @property
    def coming(self) -> int:
        return self.count(ReplicaPhase.LOADING)

    @property
    def kept(self) -> int:
        """Those that serve or will."""
        return self.count(ReplicaPhase.SERVING, ReplicaPhase.LOADING)

    def mean_slots(self) -> float:
        """Of a replica; 0: not known."""
        known = [replica.slots for replica in self.replicas if replica.state is not ReplicaPhase.STOPPING]
        return sum(known) / len(known) if known else float(self.new_slots)

    def able(self) -> float:
        """Tokens per second that those that serve can do; 0: not known of all."""
        known = [replica.tokens_per_second for replica in self.replicas if replica.state is ReplicaPhase.SERVING]
        return sum(known) if all(known) else 0.0

    def free_numbers(self) -> list[int]:
        """Numbers for new replicas, as many as there can be need of, the lowest first."""
        taken = {replica.number for replica in self.replicas}
        return [number for number in range(1, 2 * len(taken) + 1026) if number not in taken]
