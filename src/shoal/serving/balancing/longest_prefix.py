"""The replica that has computed the most of the prompt, unless others have much less to do."""

from __future__ import annotations

import math
from collections.abc import Collection
from itertools import islice

from shoal.serving.balancing.chooser import Chooser
from shoal.serving.balancing.inquiry import Inquiry
from shoal.serving.balancing.prefix_index import PrefixIndex
from shoal.serving.balancing.ranking import Ranking
from shoal.serving.balancing.replica_state import R, ReplicaState

PATIENCE = 2.0
"""A request waits for this many times the work that it saves: the saved work is the others' gain, too."""
_COMPARED = 4
"""Holders of a prefix that are compared. Where there are more, the least loaded replica is mostly one of them."""


def effort(state: ReplicaState[R]) -> float:
    """Its work, in tokens of prompts at a speed of 1; more than that while its share is small."""
    return state.work / (state.share * state.traits.speed)


class LongestPrefix(Chooser[R]):
    """Takes a holder of the longest known prefix if it has no more to do, compared with the replica that has the least, than PATIENCE
    times what it saves. Otherwise that one is taken, which then holds the prefix, too: so a hot prefix spreads.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._index = PrefixIndex()
        self._numbers: dict[ReplicaState[R], int] = {}
        self._states: dict[int, ReplicaState[R]] = {}
        """By their numbers in the index, those that are withdrawn as well."""
        self._count = 0
        self._order: Ranking[ReplicaState[R], float] = Ranking()

    def admit(self, state: ReplicaState[R]) -> None:
        if state not in self._numbers:
            self._count += 1
            self._numbers[state] = self._count
            self._states[self._count] = state
        self._order.put(state, effort(state))

    def withdraw(self, state: ReplicaState[R]) -> None:
        self._order.drop(state)

    def changed(self, state: ReplicaState[R]) -> None:
        self._order.put(state, effort(state))

    def choose(self, inquiry: Inquiry, without: Collection[ReplicaState[R]]) -> ReplicaState[R] | None:
        least = self._order.least(without)
        if least is None:
            return None
        number = self._numbers[least]
        depth, holders = self._index.find(inquiry.blocks)
        if depth == 0 or number in holders:
            return least
        while (holder := self._idlest(holders, without)) is None:  # those that hold so much cannot be chosen
            depth //= 2
            if depth == 0:
                return least
            holders = self._index.holders(inquiry.blocks[depth - 1])
        saved = (depth - self._index.depth(number, inquiry.blocks)) * self._block_tokens / least.traits.speed
        return holder if effort(holder) - effort(least) <= PATIENCE * saved else least

    def began(self, state: ReplicaState[R], inquiry: Inquiry) -> int:
        if not inquiry.blocks or state not in self._numbers:
            return 0
        return self._index.record(self._numbers[state], inquiry.blocks, state.traits.blocks) * self._block_tokens

    def forget(self, state: ReplicaState[R]) -> None:
        if state in self._numbers:
            self._index.forget(self._numbers[state])

    def remove(self, state: ReplicaState[R]) -> None:
        self.forget(state)
        self._states.pop(self._numbers.pop(state, 0), None)

    def _idlest(self, holders: Collection[int], without: Collection[ReplicaState[R]]) -> ReplicaState[R] | None:
        best, least = None, math.inf
        for number in islice(holders, _COMPARED):
            state = self._states[number]
            if state.admitted and state not in without and (own := effort(state)) < least:
                best, least = state, own
        return best
