"""The nearest replica that has room."""

from __future__ import annotations

from collections.abc import Collection

from shoal.serving.balancing.chooser import Chooser
from shoal.serving.balancing.inquiry import Inquiry
from shoal.serving.balancing.ranking import Ranking
from shoal.serving.balancing.replica_state import R, ReplicaState


class Nearest(Chooser[R]):
    """Of those at one distance, that with the fewest requests per slot. If none has a free slot, so of all."""

    def __init__(self) -> None:
        self._with_room: Ranking[ReplicaState[R], tuple[float, float]] = Ranking()
        self._all: Ranking[ReplicaState[R], tuple[float, float]] = Ranking()

    def admit(self, state: ReplicaState[R]) -> None:
        self.changed(state)

    def withdraw(self, state: ReplicaState[R]) -> None:
        self._with_room.drop(state)
        self._all.drop(state)

    def changed(self, state: ReplicaState[R]) -> None:
        slots, distance = state.traits.slots * state.share, state.traits.distance
        if state.load < max(slots, 1):
            self._with_room.put(state, (distance, (state.load + 1) / slots))
        else:
            self._with_room.drop(state)
        self._all.put(state, ((state.load + 1) / slots, distance))

    def choose(self, inquiry: Inquiry, without: Collection[ReplicaState[R]]) -> ReplicaState[R] | None:
        return self._with_room.least(without) or self._all.least(without)
