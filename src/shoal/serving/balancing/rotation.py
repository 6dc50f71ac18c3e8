"""Round robin, and round robin by weight."""

from __future__ import annotations

from collections.abc import Callable, Collection

from shoal.serving.balancing.chooser import Chooser
from shoal.serving.balancing.inquiry import Inquiry
from shoal.serving.balancing.ranking import Ranking
from shoal.serving.balancing.replica_state import R, ReplicaState


class Rotation(Chooser[R]):
    """Who was due first is next, and due again after 1 / weight.

    Equal weights make it round robin. Of others, each gets its share of any stretch of requests, not only of a long one (stride
    scheduling: Waldspurger and Weihl, 1995).
    """

    def __init__(self, weight: Callable[[ReplicaState[R]], float]) -> None:
        self._weight = weight
        self._due: dict[ReplicaState[R], float] = {}
        self._weights: dict[ReplicaState[R], float] = {}
        self._order: Ranking[ReplicaState[R], float] = Ranking()
        self._now = 0.0
        """The latest time at which one was chosen that was due."""

    def admit(self, state: ReplicaState[R]) -> None:
        weight = self._weights[state] = self._weight(state)
        self._put(state, self._now + 1.0 / weight)

    def withdraw(self, state: ReplicaState[R]) -> None:
        del self._due[state], self._weights[state]
        self._order.drop(state)

    def changed(self, state: ReplicaState[R]) -> None:
        weight, before = self._weight(state), self._weights[state]
        if weight != before:
            self._weights[state] = weight
            self._put(state, self._now + (self._due[state] - self._now) * before / weight)

    def choose(self, inquiry: Inquiry, without: Collection[ReplicaState[R]]) -> ReplicaState[R] | None:
        return self._order.least(without)

    def began(self, state: ReplicaState[R], inquiry: Inquiry) -> int:
        if state in self._due:
            self._now = max(self._now, self._due[state])
            self._put(state, self._due[state] + 1.0 / self._weights[state])
        return 0

    def _put(self, state: ReplicaState[R], due: float) -> None:
        self._due[state] = due
        self._order.put(state, due)
