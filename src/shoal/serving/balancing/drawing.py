"""By chance: one replica, or the better of two."""

from __future__ import annotations

from collections.abc import Collection

from shoal.serving.balancing.chooser import Chance, Chooser
from shoal.serving.balancing.inquiry import Inquiry
from shoal.serving.balancing.least import connections
from shoal.serving.balancing.replica_state import R, ReplicaState

_TRIES = 100
"""Draws after which a replica is taken whose share is not yet whole."""


class Drawing(Chooser[R]):
    """two: draws two and takes that with fewer requests ("the power of two choices", Mitzenmacher, 2001)."""

    def __init__(self, chance: Chance, two: bool) -> None:
        self._chance, self._two = chance, two
        self._states: list[ReplicaState[R]] = []
        self._places: dict[ReplicaState[R], int] = {}

    def admit(self, state: ReplicaState[R]) -> None:
        self._places[state] = len(self._states)
        self._states.append(state)

    def withdraw(self, state: ReplicaState[R]) -> None:
        place, last = self._places.pop(state), self._states.pop()
        if last is not state:
            self._states[place] = last
            self._places[last] = place

    def choose(self, inquiry: Inquiry, without: Collection[ReplicaState[R]]) -> ReplicaState[R] | None:
        states = self._states
        if without:
            gone = sum(state in self._places for state in without)
            if 2 * gone >= len(states):
                states = [state for state in states if state not in without]
        if not states:
            return None
        return self._better_of_two(states, without) if self._two and len(states) > 1 else self._one(states, without)

    def _one(self, states: list[ReplicaState[R]], without: Collection[ReplicaState[R]]) -> ReplicaState[R]:
        for _ in range(_TRIES):
            drawn = states[int(self._chance.random() * len(states))]
            if drawn not in without and (drawn.share >= 1.0 or self._chance.random() < drawn.share):
                return drawn
        return next(state for state in states if state not in without)

    def _better_of_two(self, states: list[ReplicaState[R]], without: Collection[ReplicaState[R]]) -> ReplicaState[R]:
        for _ in range(_TRIES):
            first = int(self._chance.random() * len(states))
            second = int(self._chance.random() * (len(states) - 1))
            drawn = [state for state in (states[first], states[second + (second >= first)]) if state not in without]
            if drawn:
                return min(drawn, key=connections)
        return next(state for state in states if state not in without)
