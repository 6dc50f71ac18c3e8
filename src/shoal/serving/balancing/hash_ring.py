"""The same replica for the same session or prefix, as long as it is not too loaded."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Collection

from shoal.serving.balancing.chooser import Chooser
from shoal.serving.balancing.inquiry import Inquiry
from shoal.serving.balancing.least import connections
from shoal.serving.balancing.ranking import Ranking
from shoal.serving.balancing.replica_state import R, ReplicaState

BOUND = 1.25
"""Most requests of a replica, as a multiple of the mean."""
PREFIX = 8
"""Blocks of a prompt that stand for it if it is of no session. Prompts that differ later meet the same replica."""
_POINTS = 64
"""Of a replica on the ring."""
_STEPS = 16 * _POINTS
"""Points that are looked at before the replica with the fewest requests is taken. Far more than are needed, on average."""


class HashRing(Chooser[R]):
    """Consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2018).

    A key has a place on the ring, and the next replica takes it that has fewer than BOUND · mean requests. So a hot key spreads, and
    when one of n replicas goes, only its keys move: about 1/n of them. Places depend on str() of a replica's name alone, so that
    several processes agree on them.
    """

    def __init__(self) -> None:
        self._points: list[tuple[int, ReplicaState[R]]] = []
        self._places: list[int] = []
        """Of the points, in order."""
        self._stale = False
        """Whether the points are out of order."""
        self._on_ring: set[ReplicaState[R]] = set()
        """Those that are not admitted stay: their keys are for others only while they are away."""
        self._order: Ranking[ReplicaState[R], float] = Ranking()
        self._loads: dict[ReplicaState[R], tuple[int, float]] = {}
        """Load and share of those that are admitted, as they are part of the sums."""
        self._load, self._shares = 0, 0.0

    def admit(self, state: ReplicaState[R]) -> None:
        if state not in self._on_ring:
            self._on_ring.add(state)
            self._points.extend((_place(f"{state.id}#{number}"), state) for number in range(_POINTS))
            self._stale = True
        self._loads[state] = (0, 0.0)
        self.changed(state)

    def withdraw(self, state: ReplicaState[R]) -> None:
        self._count(state, 0, 0.0)
        del self._loads[state]
        self._order.drop(state)
        if not self._loads:
            self._load, self._shares = 0, 0.0  # sums of floats do not return to 0 by themselves

    def changed(self, state: ReplicaState[R]) -> None:
        if self._loads[state] != (state.load, state.share):
            self._count(state, state.load, state.share)
            self._order.put(state, connections(state))

    def remove(self, state: ReplicaState[R]) -> None:
        if state in self._on_ring:
            self._on_ring.discard(state)
            self._points = [point for point in self._points if point[1] is not state]
            self._stale = True

    def choose(self, inquiry: Inquiry, without: Collection[ReplicaState[R]]) -> ReplicaState[R] | None:
        key = inquiry.session or _prefix(inquiry)
        if key and self._loads:
            if self._stale:
                self._sort()
            points, most = self._points, BOUND * (self._load + 1) / self._shares
            at = bisect_right(self._places, _place(key))
            for step in range(at, at + min(_STEPS, len(points))):
                state = points[step % len(points)][1]
                if state.admitted and state.load < most * state.share and state not in without:
                    return state
        return self._order.least(without)

    def _sort(self) -> None:
        self._points.sort(key=lambda point: point[0])
        self._places = [place for place, _ in self._points]
        self._stale = False

    def _count(self, state: ReplicaState[R], load: int, share: float) -> None:
        before, was = self._loads[state]
        self._load += load - before
        self._shares += share - was
        self._loads[state] = (load, share)


def _prefix(inquiry: Inquiry) -> str:
    name = inquiry.blocks[min(len(inquiry.blocks), PREFIX) - 1] if inquiry.blocks else ""
    return name.hex() if isinstance(name, bytes) else str(name)


def _place(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())
