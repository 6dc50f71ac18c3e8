"""Prompts of unequal lengths in micro-batches that take about equally long, without padding.

After Algorithm 2 of MoE-Lightning (arXiv 2411.11217), which forgets micro-batches that are not full at the end, and lets a request
wait if the micro-batch with the fewest tokens cannot hold it, though another could.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Batching(NamedTuple):
    """Requests by their places in what was given; each is in one of the lists."""

    batches: list[list[int]]
    """None is empty."""
    waiting: list[int]
    """No batch can hold these; the longest first."""


def batched(lengths: Sequence[int], batches: int, most: int, tokens: int, growth: int) -> Batching:
    """The longest request first, each into the batch that has the fewest prompt tokens of those that can hold it.

    lengths: tokens of each prompt. most: requests in a batch. tokens: whose keys and values there is room for, in each batch. growth:
    tokens that each request may still add to its prompt.
    """
    made: list[list[int]] = [[] for _ in range(batches)]
    filled = [0] * batches
    waiting: list[int] = []
    for request in sorted(range(len(lengths)), key=lambda request: (-lengths[request], request)):
        fit = [i for i in range(batches) if len(made[i]) < most and filled[i] + lengths[request] + growth * (len(made[i]) + 1) <= tokens]
        if not fit:
            waiting.append(request)
            continue
        least = min(fit, key=filled.__getitem__)
        made[least].append(request)
        filled[least] += lengths[request]
    return Batching([batch for batch in made if batch], waiting)
