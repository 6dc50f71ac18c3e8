"""Which experts lie on nodes that hold nothing else, and which stay with the stages. Pure.

A stage keeps the first experts of each layer, or the most used ones where that was measured, and workers hold the others: each a share
in proportion to how fast it reads, as far as its memory goes. What memory is left there holds replicas, and then experts that stages keep,
too, so that both can run them: a step's experts are divided evenly then, whichever they are. An expert that a worker already has stays
with it if it may. Where all their memory is not enough, workers that have a disk may hold more than fits, and read the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import sqrt
from typing import NamedTuple

from shoal.placement.cost import ExpertsCost, ModelCost
from shoal.placement.profile import LinkSpeed, LinkSpeeds, NodeProfile

Table = tuple[frozenset[int], ...]
"""By layer: experts."""
_SUM_BYTES = 8
"""Of a value of what comes back: see wire.routed."""
ASKING = 150e-6
"""Seconds that the answer to a layer's question comes after the products, beside the network: measured by benchmarks.experts."""
ATTENDING = 200e-6
"""Seconds that a stage itself spends on a question and its answer, in which it computes nothing."""


class Asking(NamedTuple):
    """What a layer's question to workers and its answer take, beside the products."""

    seconds: float
    """With no rows."""
    per_row: float
    """More, for each."""

    def of(self, rows: int) -> float:
        return self.seconds + self.per_row * rows


NO_ASKING = Asking(0.0, 0.0)


@dataclass(frozen=True)
class WorkerPlan:
    node: str
    table: Table
    weight_bytes: int
    memory: int = 0
    """Bytes that they may take; the rest is read from its disk. 0: all are held."""

    @property
    def streamed(self) -> float:
        """The part of its experts that is not in memory."""
        return max(1 - self.memory / self.weight_bytes, 0.0) if self.memory else 0.0


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


def capacity(model: ModelCost, worker: NodeProfile) -> int:
    """Bytes of a worker's memory that experts may take."""
    return max(worker.memory - model.workspace, 0)


def dealt(
    model: ModelCost, elsewhere: Table, workers: Sequence[NodeProfile], held: Mapping[str, Table], streamed: bool = False
) -> tuple[WorkerPlan, ...] | None:
    """Which worker holds which of these experts, replicas included. held: what they have already, by name. streamed: whether workers with disks
    may hold more than fits into their memory; there are no replicas then. None: they have no room for all."""
    sizes = [layer.experts.each.size if layer.experts else 0 for layer in model.layers]
    total = sum(size * len(experts) for size, experts in zip(sizes, elsewhere, strict=True))
    memory = {worker.name: capacity(model, worker) for worker in workers}
    room = _stretched(memory, {worker.name for worker in workers if worker.disk}, total + sum(sizes)) if streamed else dict(memory)
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
    if not streamed:
        _replicate(elsewhere, sizes, tables, room, held)
    plans = [
        WorkerPlan(
            name, tuple(map(frozenset, table)), sum(sizes[layer] * len(experts) for layer, experts in enumerate(table)), memory[name]
        )
        for name, table in tables.items()
    ]
    return tuple(plan for plan in plans if plan.weight_bytes)


def _stretched(memory: Mapping[str, int], disks: set[str], total: int) -> dict[str, int]:
    """The room of workers that together hold a total: those with disks as many times as much as fits, all alike."""
    fits = sum(memory.values())
    more = sum(bytes for name, bytes in memory.items() if name in disks and bytes > 0)
    times = 1 + max(total - fits, 0) / more if more else 1.0
    return {name: int(bytes * times) if name in disks else bytes for name, bytes in memory.items()}


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


def shared(
    model: ModelCost, absent: Table, plans: Sequence[WorkerPlan], workers: Sequence[NodeProfile], held: Mapping[str, Table]
) -> tuple[WorkerPlan, ...]:
    """The same with experts that stages keep, too, in what memory is left: of each layer as many as of any other, the most used ones first."""
    known = {plan.node: plan for plan in plans}
    out: list[WorkerPlan] = []
    taken = [set[int]() for _ in absent]
    kept = [range(layer.experts.count) if layer.experts else range(0) for layer in model.layers]
    for worker in workers:
        plan = known.get(worker.name) or WorkerPlan(worker.name, tuple(frozenset[int]() for _ in absent), 0, capacity(model, worker))
        room = plan.memory - plan.weight_bytes
        wanted = [sorted(set(experts) - gone) for experts, gone in zip(kept, absent, strict=True)]
        total = sum(layer.experts.each.size * len(some) for layer, some in zip(model.layers, wanted, strict=True) if layer.experts)
        share = min(room / total, 1.0) if total and room > 0 else 0.0
        table = list(plan.table)
        for at, (layer, some) in enumerate(zip(model.layers, wanted, strict=True)):
            if layer.experts is None:
                continue
            popularity, had = layer.experts.popularity or (0.0,) * layer.experts.count, held.get(worker.name, absent)[at] - absent[at]
            some.sort(key=lambda expert: (expert in taken[at], expert not in had, -popularity[expert], -expert))
            table[at] |= frozenset(some[: int(share * len(some))])
            taken[at] |= table[at]
        size = sum(layer.experts.each.size * len(some) for layer, some in zip(model.layers, table, strict=True) if layer.experts)
        out.append(replace(plan, table=tuple(table), weight_bytes=size))
    return tuple(plan for plan in out if plan.weight_bytes)


Workers = Sequence[tuple[WorkerPlan, NodeProfile]]


def asking(model: ModelCost, links: Sequence[LinkSpeed]) -> Asking:
    """What it takes a stage to ask workers behind these links: the slowest is waited for."""
    carried = model.activation_bytes / 4 * (1.125 + _SUM_BYTES)
    return Asking(
        ASKING + 2 * max((link.seconds for link in links), default=0.0),
        max((carried / link.bytes_per_second for link in links), default=0.0),
    )


class Divided(NamedTuple):
    """A step of a stage whose workers run some of its experts, in seconds."""

    change: float
    """By which it takes longer, or less long, than if the stage ran the experts that it keeps, and nobody the others."""
    waiting: float
    """In which the stage has nothing to do."""
    working: float
    """In which the busiest worker computes."""
    read: float
    """Bytes of experts that workers read."""


def divided(
    model: ModelCost, first: int, end: int, node: NodeProfile, workers: Workers, absent: Table, asked: Asking, rows: int
) -> Divided:
    """Of a stage with these layers, for a step with so many rows. absent: experts that only workers hold."""
    known: dict[tuple[ExpertsCost, Table], Divided] = {}  # most layers are alike
    change = waiting = working = read = 0.0
    for layer in range(first, end):
        experts, tables = model.layers[layer].experts, tuple(plan.table[layer] for plan, _ in workers)
        if experts is None or not any(tables):
            continue
        key = experts, (absent[layer], *tables)
        if key not in known:
            known[key] = _divided(experts, absent[layer], tables, node, workers, asked, rows)
        more = known[key]
        change, waiting, working, read = change + more.change, waiting + more.waiting, working + more.working, read + more.read
    return Divided(change, waiting, working, read)


def _divided(
    experts: ExpertsCost, only: frozenset[int], tables: Table, node: NodeProfile, workers: Workers, asked: Asking, rows: int
) -> Divided:
    """Of one layer."""
    count, touched, size = experts.count, experts.touched(rows), experts.each.size
    also, question = frozenset[int]().union(*tables) - only, asked.of(rows)
    holders = Counter(expert for table in tables for expert in table)
    busiest = 0.0  # seconds of the worker that has most to do, if all of `only` are needed
    for (plan, worker), table in zip(workers, tables, strict=True):
        reading = plan.streamed / worker.disk if plan.streamed else 0.0
        mine = sum(1 / holders[expert] for expert in table & only)
        busiest = max(busiest, mine * size * max(1 / worker.bytes_per_second, reading))
    here, there = size / node.bytes_per_second, size / sum(worker.bytes_per_second for _, worker in workers)
    seconds = waiting = working = read = 0.0
    for weight, needed in _spread(touched, len(only), count):
        alone = (touched - needed) * here
        must = busiest * needed / len(only) if only else 0.0
        free = (touched - needed) * len(also) / (count - len(only)) if also else 0.0
        given = min(max((alone - question - must) / (here + there), 0.0), free)
        own, theirs = alone - given * here, must + given * there
        together = ATTENDING + max(own, question + theirs)
        if not needed and together > alone:
            seconds += weight * alone
            continue
        seconds += weight * together
        waiting += weight * max(question + theirs - own, 0.0)
        working += weight * theirs
        read += weight * (needed + given) * size
    return Divided(seconds - touched * (1 - len(only) / count) * here, waiting, working, read)


def _spread(touched: float, among: int, count: int) -> list[tuple[float, float]]:
    """How many of the experts that a step needs are among so many, and how probable that is, at three points: it does not need as many
    of them every time, and whoever has more to do than usual is waited for."""
    share = among / count
    mean = touched * share
    deviation = min(sqrt(3 * mean * (1 - share) * (1 - touched / count)), mean, among - mean, touched - mean)
    return [(1 / 6, mean - deviation), (2 / 3, mean), (1 / 6, mean + deviation)] if deviation > 0 else [(1.0, mean)]


def balance(model: ModelCost, stages: Sequence[NodeProfile], workers: Sequence[NodeProfile], links: LinkSpeeds, slots: int) -> float | None:
    """The share of the experts with which stages and workers read about as long, if all run layers that may. None: there are no experts."""
    routed = [layer.experts for layer in model.layers if layer.experts is not None]
    if not routed:
        return None
    rows = max(1, slots // len(stages))
    read = sum(experts.touched(rows) * experts.each.size for experts in routed) / len(routed)
    own = read * len(stages) / sum(node.bytes_per_second for node in stages)
    theirs = read * len(stages) / sum(node.bytes_per_second for node in workers)
    asked = asking(model, [links.between("", worker.name) for worker in workers]).of(rows)
    return max(own - asked, 0.0) / (own + theirs)
