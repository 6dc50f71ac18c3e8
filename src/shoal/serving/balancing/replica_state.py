"""What the balancer knows of one replica."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from shoal.errors import ConfigError
from shoal.serving.balancing.circuit import CircuitBreaker

R = TypeVar("R", bound=Hashable)

REQUEST_TOKENS = 256
"""Tokens of a prompt that take a replica about as much as one running request does."""
PACE_DECAY = 10.0
"""Seconds after which a pace counts 1/e."""
_FAILURE = 10.0
"""Seconds to the first token that a failed request counts as, if nothing is known of the replica."""
SAMPLES = 32
"""Times that are kept to compare a replica with its peers."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """Of a replica, as far as they are known before it is used. Raises ConfigError if a value makes no sense."""

    speed: float = 1.0
    """Predicted tokens per second; only the ratios between replicas count."""
    distance: float = 0.0
    """How far away it is, as seconds of its link or whatever else its peers are measured by."""
    slots: int = 8
    """Requests that it runs at once."""
    blocks: int = 4096
    """KV blocks in its memory."""

    def __post_init__(self) -> None:
        if not 0 < self.speed < math.inf:
            raise ConfigError(f"the speed of a replica must be positive, not {self.speed}")
        if not 0 <= self.distance < math.inf:
            raise ConfigError(f"the distance of a replica must not be negative, but is {self.distance}")
        if self.slots < 1 or self.blocks < 0:
            raise ConfigError(f"a replica has at least one slot and no negative number of blocks, not {self.slots} and {self.blocks}")


@dataclass(eq=False, slots=True)
class ReplicaState(Generic[R]):
    id: R
    traits: Traits
    circuit: CircuitBreaker
    in_flight: int = 0
    """Requests that were sent to it from here and have not ended."""
    elsewhere: int = 0
    """Requests of others that it had at its last report."""
    pending: int = 0
    """Tokens of prompts in flight that it has yet to compute before their first tokens come."""
    share: float = 1.0
    """What it takes, of what it will take when it has been here for a while; more than 0."""
    pace: float | None = None
    """Seconds to a first token, per token of the work that was to be done until then: the peak, from which it falls with time.
    None: not known.
    """
    pace_at: float = 0.0
    """When that was measured, in seconds."""
    admitted: bool = False
    """Whether it may be chosen."""
    draining: bool = False
    paused_until: float = float("-inf")
    began: float = 0.0
    """When it began to take a rising share, in seconds."""
    next_step: float = float("inf")
    """When that share rises next."""
    first_tokens: deque[tuple[float, float]] = field(default_factory=lambda: deque[tuple[float, float]](maxlen=SAMPLES))
    """When they came, and after how many seconds."""
    token_times: deque[tuple[float, float]] = field(default_factory=lambda: deque[tuple[float, float]](maxlen=SAMPLES))
    """When an answer ended, and its seconds per token after the first."""

    @property
    def load(self) -> int:
        """Requests that it has."""
        return self.in_flight + self.elsewhere

    @property
    def work(self) -> int:
        """What it has to do, in tokens of prompts."""
        return self.pending + REQUEST_TOKENS * (self.in_flight + self.elsewhere)

    def heard(self, seconds: float, work: int, now: float) -> None:
        """A first token took so long. work: at its request's beginning. A peak counts at once, what is quicker only as time passes."""
        pace = max(seconds, 1e-6) / work
        if self.pace is None or pace > self.pace:
            self.pace = pace
        else:
            kept = math.exp((self.pace_at - now) / PACE_DECAY)
            self.pace = self.pace * kept + pace * (1.0 - kept)
        self.pace_at = now

    def failed(self, seconds: float, work: int, now: float) -> None:
        """A request ended after so long without a first token. However quick that was, it does not make the replica a quick one."""
        self.heard(max(seconds, _FAILURE if self.pace is None else 2.0 * self.pace * work), work, now)

    def unknown(self) -> None:
        """Its times so far say nothing about those to come."""
        self.pace = None
        self.first_tokens.clear()
        self.token_times.clear()


@dataclass(eq=False, slots=True)
class Flight(Generic[R]):
    """A request that a replica has. Made and read by the balancer alone."""

    state: ReplicaState[R]
    began: float
    pending: int
    """Tokens of its prompt that are yet to be computed."""
    work: int
    """Of the replica when it began, with its own."""
    probe: bool
    first: float | None = None
    """When its first token came."""
    over: bool = False
