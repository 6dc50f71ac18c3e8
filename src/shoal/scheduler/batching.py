"""Streams of unequal contexts in steps that take about equally long, without padding.

With S stages the streams are spread over S steps, which follow each other through the pipeline: the longest of them is what every stage
waits for. So streams are spread by what their rows cost, not by their number. This is Algorithm 2 of MoE-Lightning (arXiv 2411.11217)
without its two faults: it forgets micro-batches that are not full at the end, and lets a request wait if the micro-batch with the fewest
tokens cannot hold it, though another could. Here no step has room of its own that could be lacking: KV blocks are one pool for all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heapify, heapreplace


def spread(weights: Iterable[float], groups: int) -> list[list[float]]:
    """Each weight in one of so many groups, the largest first, each into the group that has least so far."""
    made: list[list[float]] = [[] for _ in range(groups)]
    sums = [(0.0, group) for group in range(groups)]
    heapify(sums)
    for weight in sorted(weights, reverse=True):
        least, group = sums[0]
        made[group].append(weight)
        heapreplace(sums, (least + weight, group))
    return made


@dataclass(frozen=True)
class StepShare:
    """What a step takes of the streams, so that all steps in flight take about as long."""

    per_token: float
    """What a token of its context adds to the weight of a row, which is 1 without any."""
    most: float
    """The weight of the heaviest step, if they are spread well."""
    least_row: float

    @classmethod
    def of(cls, lengths: Iterable[int], steps: int, per_token: float = 0.0) -> StepShare:
        """lengths: tokens of each stream."""
        weights = [1 + per_token * length for length in lengths]
        return cls(per_token, max(map(sum, spread(weights, steps))), min(weights, default=0.0))

    def weight(self, length: int) -> float:
        """Of a row of a sequence with so many tokens."""
        return 1 + self.per_token * length

    def filled(self, weight: float) -> bool:
        return weight > self.most * (1 - 1e-9)

    def holds(self, weight: float) -> bool:
        """Whether a step may have so much. One light row too many is better than one that is left over."""
        return weight < self.most + self.least_row * (1 - 1e-6)
