"""What a step consists of: operations on resources, each after others; and how long they take together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import NamedTuple

from shoal.placement.timeline import Span


class Kind(StrEnum):
    LOAD = "load"
    """A page of a layer's weights comes to where it is used."""
    BEFORE_ATTENTION = "before attention"
    """Norm; queries, keys and values."""
    OFFLOAD = "offload"
    """These go to where attention runs, if that is elsewhere."""
    ATTENTION = "attention"
    BRING_BACK = "bring back"
    """What attention gave comes to where the rest runs."""
    AFTER_ATTENTION = "after attention"
    """The output's projection, norm and router."""
    EXPERTS = "experts"


class Operation(NamedTuple):
    kind: Kind
    resource: str
    layer: int
    part: int
    """Of a load: the page; of everything else: the micro-batch, or the page if experts run for all of them at once."""
    needs: tuple[int, ...]
    """Operations that have to be over, by their places in the program: earlier ones."""


def simulated(program: Iterable[Operation], seconds: Callable[[Operation], float]) -> list[Span]:
    """When each operation of a program runs. A resource does one at a time, in the order of the program, as soon as what it needs is over.

    Raises ValueError if an operation needs a later one.
    """
    spans: list[Span] = []
    free: dict[str, float] = {}
    for at, operation in enumerate(program):
        if any(need >= at or need < 0 for need in operation.needs):
            raise ValueError(f"operation {at} needs one that does not come before it")
        began = max(free.get(operation.resource, 0.0), *(spans[need].ended for need in operation.needs), 0.0)
        free[operation.resource] = began + seconds(operation)
        spans.append(Span(operation.resource, operation.kind, operation.layer, began, free[operation.resource]))
    return spans


def makespan(spans: Iterable[Span]) -> float:
    """Seconds from 0 to the end of the last one."""
    return max((span.ended for span in spans), default=0.0)
