"""Tables of experts as messages carry them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shoal.control import messages as control
from shoal.executor.expert_split import RemoteExperts, Split
from shoal.placement.experts import Table


def tables_of(table: Table, layers: range | None = None) -> list[control.ExpertTable]:
    """layers: None: all."""
    return [
        control.ExpertTable(layer=layer, experts=sorted(experts))
        for layer, experts in enumerate(table)
        if experts and (layers is None or layer in layers)
    ]


def by_layer(tables: Iterable[control.ExpertTable]) -> dict[int, frozenset[int]]:
    return {table.layer: frozenset(table.experts) for table in tables}


def together(tables: Iterable[Mapping[int, frozenset[int]]]) -> dict[int, frozenset[int]]:
    """By layer: what is in any of them."""
    out: dict[int, frozenset[int]] = {}
    for table in tables:
        for layer, experts in table.items():
            out[layer] = out.get(layer, frozenset()) | experts
    return out


def remote_experts(order: control.Load) -> RemoteExperts | None:
    """What workers hold for a stage; None: nothing."""
    if not order.workers:
        return None
    only, held = by_layer(order.absent), together(by_layer(worker.experts) for worker in order.workers)
    also = {layer: experts - only.get(layer, frozenset()) for layer, experts in held.items()}
    return RemoteExperts(only, also, Split(len(order.workers), order.asking, order.asking_per_row), order.degrade)
