"""The replica that has the least of something."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from shoal.serving.balancing.chooser import Chooser
from shoal.serving.balancing.inquiry import Inquiry
from shoal.serving.balancing.ranking import Ranking
from shoal.serving.balancing.replica_state import PACE_DECAY, REQUEST_TOKENS, R, ReplicaState


def connections(state: ReplicaState[R]) -> float:
    """Requests that it would have; more than these while its share is small."""
    return (state.load + 1) / state.share


def expected_latency(state: ReplicaState[R]) -> float:
    """Orders replicas by pace · work², where the pace decays since it was measured (after "peak EWMA", of Finagle).

    It is the logarithm of that, plus now / PACE_DECAY. All decay alike, so that no key changes as time passes. Squared, since pace ·
    work is the same for all where a first token takes as long whatever there is to do: these should share the work, too. A replica of
    unknown pace gets one request before the others, and further ones after them until it is known.
    """
    if state.pace is None:
        return math.inf if state.in_flight else -math.inf
    return math.log(state.pace * (state.work + REQUEST_TOKENS) ** 2 / state.share) + state.pace_at / PACE_DECAY


class Least(Chooser[R]):
    """cost: of a replica; it depends on its state alone, not on the time."""

    def __init__(self, cost: Callable[[ReplicaState[R]], float]) -> None:
        self._cost = cost
        self._order: Ranking[ReplicaState[R], float] = Ranking()

    def admit(self, state: ReplicaState[R]) -> None:
        self._order.put(state, self._cost(state))

    def withdraw(self, state: ReplicaState[R]) -> None:
        self._order.drop(state)

    def changed(self, state: ReplicaState[R]) -> None:
        self._order.put(state, self._cost(state))

    def choose(self, inquiry: Inquiry, without: Collection[ReplicaState[R]]) -> ReplicaState[R] | None:
        return self._order.least(without)
