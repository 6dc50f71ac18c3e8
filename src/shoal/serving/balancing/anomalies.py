"""Replicas that are out of line with their peers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Generic

from shoal.serving.balancing.replica_state import R, ReplicaState

_DEVIATIONS = 3.5
"""Robust standard deviations from the median of all replicas (Iglewicz and Hoaglin, 1993)."""
_TO_SIGMA = 1.4826
"""From a median absolute deviation to the standard deviation of a normal distribution."""
_LEAST_SPREAD = 0.1
"""Of the median: replicas that are nearly alike are not told apart."""
_PLAINLY = 1.5
"""Times the median that a replica takes at least if it is called slow."""
_SAMPLES = 5
"""Times that a replica is judged by, at least."""
_RECENT = 300.0
"""Seconds for which a time counts."""
_REPLICAS = 3
"""Of two, nobody can say which one is out of line."""
_REQUESTS = 10
"""By which an error rate is judged, at least."""
_FAILURES = 3
_USUAL_RATE = 0.01
"""Error rate below which peers count as if they had it."""


@dataclass(frozen=True)
class SlowReplica(Generic[R]):
    replica: R
    what: str
    """"first token" or "token"."""
    seconds: float
    """The median of its last ones."""
    usual: float
    """The median of those of all replicas, in seconds."""
    deviations: float
    """How far apart these are, in standard deviations of the replicas, as estimated from their median absolute deviation."""

    @property
    def reason(self) -> str:
        return f"its {self.what} takes {self.seconds * 1e3:.3g} ms, on the median replica {self.usual * 1e3:.3g} ms"


@dataclass(frozen=True)
class FailingReplica(Generic[R]):
    replica: R
    failed: int
    requests: int
    """Of the last seconds."""
    usual: float
    """The failure rate of the median replica."""

    @property
    def reason(self) -> str:
        return f"{self.failed} of its last {self.requests} requests failed, on the median replica {self.usual:.1%}"


def slow_replicas(states: Sequence[ReplicaState[R]], now: float) -> list[SlowReplica[R]]:
    return [
        *_slow(states, "first token", lambda state: state.first_tokens, now - _RECENT),
        *_slow(states, "token", lambda state: state.token_times, now - _RECENT),
    ]


def _slow(
    states: Sequence[ReplicaState[R]], what: str, times: Callable[[ReplicaState[R]], Iterable[tuple[float, float]]], since: float
) -> list[SlowReplica[R]]:
    typical: dict[R, float] = {}
    for state in states:
        recent = [seconds for at, seconds in times(state) if at >= since]
        if len(recent) >= _SAMPLES:
            typical[state.id] = median(recent)
    if len(typical) < _REPLICAS:
        return []
    middle = median(typical.values())
    spread = max(_TO_SIGMA * median(abs(seconds - middle) for seconds in typical.values()), _LEAST_SPREAD * middle, 1e-9)
    return [
        SlowReplica(replica, what, seconds, middle, (seconds - middle) / spread)
        for replica, seconds in typical.items()
        if seconds >= _PLAINLY * middle and seconds - middle >= _DEVIATIONS * spread
    ]


def failing_replicas(states: Sequence[ReplicaState[R]], now: float) -> list[FailingReplica[R]]:
    """By the binomial distribution of as many requests at the error rate of the median replica."""
    counts = [(state.id, *state.circuit.outcomes.counts(now)) for state in states]
    judged = [(replica, failed, served + failed) for replica, served, failed in counts if served + failed >= _REQUESTS]
    if len(judged) < _REPLICAS:
        return []
    usual = median(failed / requests for _, failed, requests in judged)
    rate = max(usual, _USUAL_RATE)
    return [
        FailingReplica(replica, failed, requests, usual)
        for replica, failed, requests in judged
        if failed >= _FAILURES and failed - requests * rate > _DEVIATIONS * math.sqrt(requests * rate * (1.0 - rate))
    ]
