"""Sequences that wait for others, so that all of them are admitted together: throughput in exchange for the wait.

Only those wait that were never let in: one that was preempted, or that ran on another route, finds a slot as soon as there is one.
"""

from __future__ import annotations

from collections.abc import Iterable

from shoal.scheduler.limits import Batching
from shoal.scheduler.sequence import Sequence


def release(waiting: Iterable[Sequence], batching: Batching, now: float) -> None:
    """Lets all of them in, if there are enough or one has waited for long enough. now: seconds."""
    if not batching.delay:
        return
    held = _held(waiting)
    first = due(held, batching)
    if len(held) >= batching.size or (first is not None and now >= first):
        for sequence in held:
            sequence.held = False


def due(waiting: Iterable[Sequence], batching: Batching) -> float | None:
    """When the first has waited for long enough; None: no one waits for others."""
    if not batching.delay:
        return None
    return min((sequence.came + batching.delay for sequence in _held(waiting)), default=None)


def _held(waiting: Iterable[Sequence]) -> list[Sequence]:
    return [sequence for sequence in waiting if sequence.held]
