"""The replica that has computed the most of the prompt, unless others have much less to do."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

from shoal.serving.balancing.chooser import Chooser
from shoal.serving.balancing.inquiry import BlockName, Inquiry
from shoal.serving.balancing.prefix_index import PrefixIndex
from shoal.serving.balancing.ranking import Ranking
from shoal.serving.balancing.replica_state import R, ReplicaState

REQUEST_TOKENS = 256
"""Tokens of a prompt that take a replica about as much as one running request does."""
PATIENCE = 2.0
"""A request waits for this many times the work that it saves: the saved work is the others' gain, too."""
_COMPARED = 8
"""Holders of a prefix that are compared. Where there are more, the least loaded replica is mostly one of them."""


def work(state: ReplicaState[R]) -> float:
    """What it has to do, in tokens of prompts at a speed of 1."""
    return (state.pending + REQUEST_TOKENS * state.load) / (state.share * state.traits.speed)


class LongestPrefix(Chooser[R]):
    """Takes a holder of the longest known prefix if it has no more to do, compared with the replica that has the least, than PATIENCE
    times what it saves. Otherwise that one is taken, which then holds the prefix, too: so a hot prefix spreads.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._index: PrefixIndex[ReplicaState[R]] = PrefixIndex()
        self._order: Ranking[ReplicaState[R], float] = Ranking()

    def admit(self, state: ReplicaState[R]) -> None:
        self._order.put(state, work(state))

    def withdraw(self, state: ReplicaState[R]) -> None:
        self._order.drop(state)

    def changed(self, state: ReplicaState[R]) -> None:
        self._order.put(state, work(state))

    def choose(self, inquiry: Inquiry, without: Collection[ReplicaState[R]]) -> ReplicaState[R] | None:
        least = self._order.least(without)
        depth, holders = self._index.find(inquiry.blocks)
        if least is None or depth == 0 or least in holders:
            return least
        while (holder := _idlest(holders, without)) is None:  # those that hold so much cannot be chosen
            depth //= 2
            if depth == 0:
                return least
            holders = self._index.holders(inquiry.blocks[depth - 1])
        saved = (depth - self._index.depth(least, inquiry.blocks)) * self._block_tokens / least.traits.speed
        return holder if work(holder) - work(least) <= PATIENCE * saved else least

    def began(self, state: ReplicaState[R], inquiry: Inquiry) -> int:
        return self._index.record(state, inquiry.blocks, state.traits.blocks) * self._block_tokens

    def forget(self, state: ReplicaState[R]) -> None:
        self._index.forget(state)

    def remove(self, state: ReplicaState[R]) -> None:
        self._index.forget(state)

    def holders(self, block: BlockName) -> Collection[ReplicaState[R]]:
        return self._index.holders(block)


def _idlest(holders: Collection[ReplicaState[R]], without: Collection[ReplicaState[R]]) -> ReplicaState[R] | None:
    able = [state for state in islice(holders, _COMPARED) if state.admitted and state not in without]
    return min(able, key=work, default=None)
