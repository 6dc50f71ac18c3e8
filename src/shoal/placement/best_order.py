"""What a step that was recorded would take in the best order: the same reads and the same computations, as CGOPipe arranges them."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.placement.cgopipe import DISK as RESOURCES
from shoal.placement.cgopipe import PipeSetting, experts_once
from shoal.placement.operations import Kind, Operation, simulated
from shoal.placement.timeline import DISK, EXPERTS, PROCESSOR, WAITING, Span, busy

_HEAD = "head"
"""Of a recorded step; all else but waiting and experts is what a layer does before these."""


def best_order(spans: Sequence[Span], slots: int) -> list[Span]:
    """spans: of one step. slots: reads that may be there before they are used. Layers are taken to be alike, each with its share of the
    reads and of the time; one read follows the other, as fast as they came together. Empty if nothing was read."""
    reads = [span for span in spans if span.resource == DISK]
    computed = [span for span in spans if span.resource == PROCESSOR and span.what != WAITING]
    layers = len({span.layer for span in computed if span.what != _HEAD})
    if not reads or not layers:
        return []
    pages = max(round(len(reads) / layers), 1)
    experts, head = (sum(span.ended - span.began for span in computed if span.what == what) for what in (EXPERTS, _HEAD))
    before = sum(span.ended - span.began for span in computed) - experts - head
    seconds = {
        Kind.LOAD: busy(reads) / (layers * pages),
        Kind.BEFORE_ATTENTION: before / layers,
        Kind.EXPERTS: experts / (layers * pages),
    }
    program: list[Operation] = experts_once(PipeSetting(layers, 1, pages, max(slots, 1), RESOURCES))
    found = simulated(program, lambda operation: seconds.get(operation.kind, 0.0))
    end = max(span.ended for span in found)
    return [*found, Span(PROCESSOR, _HEAD, layers, end, end + head)]
