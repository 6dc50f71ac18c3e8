"""Which experts lie on nodes that hold nothing else, and which stay with the stages. Pure.

A stage keeps the first experts of each layer, or the most used ones where that was measured, and workers hold the others: each a share
in proportion to how fast it reads, as far as its memory goes. What memory is left there holds replicas. An expert that a worker already
has stays with it if it may.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from shoal.placement.cost import ExpertsCost, ModelCost
from shoal.placement.profile import LinkSpeed, LinkSpeeds, NodeProfile

Table = tuple[frozenset[int], ...]
"""By layer: experts."""
_SUM_BYTES = 8
"""Of a value of what comes back: see wire.routed."""
_ASKING = 300e-6
"""Seconds that a layer's question and answer take both ends, beside the network and the products: measured by benchmarks.experts."""


@dataclass(frozen=True)
class WorkerPlan:
    node: str
    table: Table
    weight_bytes: int


def union(tables: Iterable[Table]) -> Table:
    return tuple(frozenset[int]().union(*layer) for layer in zip(*tables, strict=True))


def covered(away: Table, workers: Iterable[WorkerPlan]) -> bool:
    """Whether somebody holds each of the experts that the stages do not."""
    held = union([tuple(frozenset[int]() for _ in away), *(worker.table for worker in workers)])
    return all(wanted <= here for wanted, here in zip(away, held, strict=True))


def alone(away: Table, workers: Sequence[WorkerPlan]) -> int:
    """Experts that only one worker holds."""
    return sum(sum(expert in worker.table[layer] for worker in workers) < 2 for layer, experts in enumerate(away) for expert in experts)


def away(model: ModelCost, share: float) -> Table:
    """The experts that stages do not keep if that share of each layer's is elsewhere."""
    return tuple(_rarest(layer.experts, round(layer.experts.count * share)) if layer.experts else frozenset() for layer in model.layers)


@lru_cache(256)
def _rarest(experts: ExpertsCost, count: int) -> frozenset[int]:
    popularity = experts.popularity or (0.0,) * experts.count
    return frozenset(sorted(range(experts.count), key=lambda expert: (popularity[expert], -expert))[:count])


def without(model: ModelCost, elsewhere: Table) -> ModelCost:
    """What the stages cost that do not hold these."""
    layers = tuple(
        layer if layer.experts is None or not gone else replace(layer, experts=_kept(layer.experts, layer.experts.count - len(gone)))
        for layer, gone in zip(model.layers, elsewhere, strict=True)
    )
    return replace(model, layers=layers)


def _kept(experts: ExpertsCost, count: int) -> ExpertsCost | None:
    return None if not count else replace(experts, count=count, chosen=experts.chosen * count / experts.count, popularity=())


def dealt(model: ModelCost, elsewhere: Table, workers: Sequence[NodeProfile], held: Mapping[str, Table]) -> tuple[WorkerPlan, ...] | None:
    """Which worker holds which of these experts, replicas included. held: what they have already, by name. None: they have no room for all."""
    sizes = [layer.experts.each.size if layer.experts else 0 for layer in model.layers]
    total = sum(size * len(experts) for size, experts in zip(sizes, elsewhere, strict=True))
    room = {worker.name: worker.memory - model.workspace for worker in workers}
    shares = _shares(
        {worker.name: worker.bytes_per_second for worker in workers}, {name: room[name] / total for name in room} if total else {}
    )
    if total and shares is None:
        return None
    tables: dict[str, list[set[int]]] = {worker.name: [set() for _ in elsewhere] for worker in workers}
    for layer, experts in enumerate(elsewhere):
        size = sizes[layer]
        quotas = {name: min(quota, room[name] // size) for name, quota in _apportioned(len(experts), shares or {}).items()} if size else {}
        left = sorted(experts)
        for name, quota in quotas.items():
            mine = set([expert for expert in left if name in held and expert in held[name][layer]][:quota])
            tables[name][layer] |= mine
            left = [expert for expert in left if expert not in mine]
        for name, quota in quotas.items():
            more = quota - len(tables[name][layer])
            tables[name][layer].update(left[:more])
            left = left[more:]
        for expert in left:  # a quota was rounded up to more than there is room for
            name = max(room, key=lambda name: room[name] - size * len(tables[name][layer]))
            tables[name][layer].add(expert)
        for name in tables:
            room[name] -= size * len(tables[name][layer])
            if room[name] < 0:
                return None
    _replicate(elsewhere, sizes, tables, room, held)
    plans = [
        WorkerPlan(name, tuple(map(frozenset, table)), sum(sizes[layer] * len(experts) for layer, experts in enumerate(table)))
        for name, table in tables.items()
    ]
    return tuple(plan for plan in plans if plan.weight_bytes)


def _replicate(
    elsewhere: Table, sizes: Sequence[int], tables: Mapping[str, list[set[int]]], room: dict[str, int], held: Mapping[str, Table]
) -> None:
    """Fills what memory is left, until every expert is there twice: on whoever has it already, or has the most room."""
    if len(tables) < 2:
        return
    for layer, experts in enumerate(elsewhere):
        mine = [(name, table[layer], held[name][layer] if name in held else frozenset[int]()) for name, table in tables.items()]
        for expert in sorted(experts):
            free = [
                (expert in had, room[name], name, here) for name, here, had in mine if expert not in here and room[name] >= sizes[layer]
            ]
            if free:
                _, _, name, here = max(free)
                here.add(expert)
                room[name] -= sizes[layer]


def _shares(speeds: Mapping[str, float], most: Mapping[str, float]) -> dict[str, float] | None:
    """In proportion to the speeds, none above its most; they sum to 1. None: that cannot be."""
    shares, left, names = dict.fromkeys(speeds, 0.0), 1.0, set(speeds)
    while left > 1e-9:
        names = {name for name in names if shares[name] < most.get(name, 0.0) - 1e-12}
        if not names:
            return None
        total = sum(speeds[name] for name in names)
        given = {name: min(left * speeds[name] / total, most[name] - shares[name]) for name in sorted(names)}
        for name, part in given.items():
            shares[name] += part
        left -= sum(given.values())
    return shares


def _apportioned(count: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers that sum to the count, by largest remainders."""
    exact = {name: count * share for name, share in shares.items()}
    out = {name: int(value + 1e-9) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (out[name] - exact[name], name))
    for name in by_remainder[: count - sum(out.values())]:
        out[name] += 1
    return out


Workers = Sequence[tuple[WorkerPlan, NodeProfile]]


def asking(model: ModelCost, link: LinkSpeed, rows: int) -> float:
    """Seconds of a layer's question and its answer, without the products."""
    return _ASKING + 2 * link.seconds + rows * model.activation_bytes / 4 * (1.125 + _SUM_BYTES) / link.bytes_per_second


def waits(model: ModelCost, first: int, end: int, node: NodeProfile, workers: Workers, links: LinkSpeeds, rows: int) -> float:
    """Seconds of a step with so many rows in which a stage with these layers waits for experts elsewhere, after it has run its own."""
    known: dict[tuple[ExpertsCost, Table], float] = {}  # most layers are alike
    seconds = 0.0
    for experts, tables in _asking(model, first, end, workers):
        if (experts, tables) not in known:
            gone = len(frozenset[int]().union(*tables))
            slowest = 0.0
            for (_, worker), part in zip(workers, _parts(experts, tables, rows), strict=True):
                if part:
                    asked = asking(model, links.between(node.name, worker.name), rows)
                    slowest = max(slowest, asked + part / worker.bytes_per_second)
            own = (experts.count - gone) * experts.touched(rows) / experts.count * experts.each.size
            known[experts, tables] = max(slowest - own / node.bytes_per_second, 0.0)
        seconds += known[experts, tables]
    return seconds


def balance(model: ModelCost, stages: Sequence[NodeProfile], workers: Sequence[NodeProfile], links: LinkSpeeds, slots: int) -> float | None:
    """The share of the experts with which stages and workers read about as long, if all run layers that may. None: there are no experts."""
    routed = [layer.experts for layer in model.layers if layer.experts is not None]
    if not routed:
        return None
    rows = max(1, slots // len(stages))
    read = sum(experts.touched(rows) * experts.each.size for experts in routed) / len(routed)
    own = read * len(stages) / sum(node.bytes_per_second for node in stages)
    theirs = read * len(stages) / sum(node.bytes_per_second for node in workers)
    asked = sum(asking(model, links.between("", worker.name), rows) for worker in workers) / len(workers)
    return max(own - asked, 0.0) / (own + theirs)


def working(model: ModelCost, workers: Workers, rows: int) -> float:
    """Seconds that the busiest worker computes for a step with so many rows, for the stages of all layers."""
    known: dict[tuple[ExpertsCost, Table], list[float]] = {}
    seconds = [0.0] * len(workers)
    for experts, tables in _asking(model, 0, len(model.layers), workers):
        if (experts, tables) not in known:
            known[experts, tables] = _parts(experts, tables, rows)
        for i, part in enumerate(known[experts, tables]):
            seconds[i] += part / workers[i][1].bytes_per_second
    return max(seconds, default=0.0)


def _asking(model: ModelCost, first: int, end: int, workers: Workers) -> Iterator[tuple[ExpertsCost, Table]]:
    """Of the layers that ask workers: their experts, and which each worker has."""
    for layer in range(first, end):
        experts, tables = model.layers[layer].experts, tuple(plan.table[layer] for plan, _ in workers)
        if experts is not None and any(tables):
            yield experts, tables


def _parts(experts: ExpertsCost, tables: Table, rows: int) -> list[float]:
    """Bytes that each worker is expected to read for one layer; who have the same expert are asked alike often."""
    each = experts.touched(rows) / experts.count * experts.each.size
    holders = Counter(expert for table in tables for expert in table)
    return [sum(each / holders[expert] for expert in table) for table in tables]
