"""Splits a model's layers over nodes so that the slowest stage is as fast as possible.

For one order of nodes this is the classic contiguous min-max partition, by dynamic programming over (node, layers placed),
after PipeDream (Narayanan et al., 2019, section 3.1); orders and subsets are tried on top. Ties go to the lower latency, so a
node that gains nothing is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, permutations
from typing import NamedTuple

from shoal.errors import CapacityError, NotEnoughMemory
from shoal.placement.cost import ModelCost
from shoal.placement.division import StageSizes, divide, least_expected
from shoal.placement.experts import NO_ASKING, Asking, Table, WorkerPlan
from shoal.placement.profile import Demand, LinkSpeeds, NodeProfile

_CHUNK = 256  # rows of a prompt that share what is streamed
_NEARLY = 0.9
_TRY_ALL = 4  # up to this many nodes, every order of every subset is tried: 64 orders; above, orders by speed


@dataclass(frozen=True)
class StagePlan:
    node: str
    first: int
    end: int
    weight_bytes: int
    seconds: float
    """Predicted for a decode step with its share of all slots."""
    prefill_seconds: float
    """Predicted per token."""
    memory: int = 0
    """Bytes that the weights may take, less than they have: the rest is streamed from disk. 0: all are held."""
    experts_seconds: float = 0.0
    """Predicted for reading all experts that are not in memory."""
    asking: Asking = NO_ASKING
    """Of workers."""

    @property
    def layers(self) -> int:
        return self.end - self.first

    @property
    def held_bytes(self) -> int:
        """Of its weights, in memory."""
        return self.memory or self.weight_bytes


@dataclass(frozen=True)
class Placement:
    stages: tuple[StagePlan, ...]
    kv_tokens: int
    hop_seconds: float
    """Of a decode step over all links, from the head back to the head."""
    slots: int
    elsewhere: Table = ()
    """Experts that no stage holds, by layer; empty: the stages hold all."""
    workers: tuple[WorkerPlan, ...] = ()
    """Who holds them, and others that stages hold, too."""
    working: float = 0.0
    """Seconds that the busiest worker computes for one decode step, for all stages."""

    @property
    def streams(self) -> bool:
        """Whether any weights are read from disk while it runs."""
        return any(stage.memory for stage in self.stages) or any(plan.streamed for plan in self.workers)

    @property
    def holdings(self) -> tuple[tuple[str, range | Table], ...]:
        """Who holds what."""
        return *((s.node, range(s.first, s.end)) for s in self.stages), *((plan.node, plan.table) for plan in self.workers)

    @property
    def slowest(self) -> float:
        return max(stage.seconds for stage in self.stages)

    @property
    def latency(self) -> float:
        return sum(stage.seconds for stage in self.stages) + self.hop_seconds

    @property
    def tokens_per_second(self) -> float:
        """With all slots busy, so that every stage works on its share of them at once, and workers on those of all stages."""
        stages = len(self.stages)
        busy = min(self.slots, max(1, self.slots // stages) * stages)
        return busy / max(self.latency, max(self.slowest, self.working) * stages)

    @property
    def prefill_per_second(self) -> float:
        return 1 / max(stage.prefill_seconds for stage in self.stages)


class Streamed(NamedTuple):
    """Seconds of a stage that streams."""

    decode: float
    """Of a step with its share of all slots."""
    prefill: float
    """Per token."""
    experts: float
    """To read all experts that are not in memory."""


class Costs:
    """Costs of layer ranges on a node, from prefix sums, for a decode step with a stage's share of all slots."""

    def __init__(self, model: ModelCost, demand: Demand, stages: int) -> None:
        self.model = model
        self.rows = rows = max(1, demand.slots // stages)
        self._held = [0, *accumulate(layer.held_bytes for layer in model.layers)]
        self._kv = [0, *accumulate(layer.kv_bytes for layer in model.layers)]
        self._read = [0, *accumulate(layer.read_bytes(rows) + layer.kv_read(demand.context) * rows for layer in model.layers)]
        self._flops = [0, *accumulate(layer.flops(rows) for layer in model.layers)]
        self._row_flops = [0, *accumulate(layer.flops(1) for layer in model.layers)]
        self._experts = [0, *accumulate(layer.held_bytes - layer.always.size for layer in model.layers)]
        self._touched = [0, *accumulate(layer.read_bytes(rows) - layer.always.size for layer in model.layers)]
        self._sizes: dict[tuple[int, int], tuple[StageSizes, int]] = {}
        """Of a stage with these layers, and the least of it that has to be in memory."""

    def _last(self, end: int) -> bool:
        return end == len(self.model.layers)

    def weights(self, first: int, end: int) -> int:
        return self._held[end] - self._held[first] + (self.model.head.size if self._last(end) else 0)

    def memory(self, first: int, end: int, kv_tokens: int) -> int:
        last = self.model.last_bytes if self._last(end) else 0
        return self.weights(first, end) + (self._kv[end] - self._kv[first]) * kv_tokens + self.model.workspace + last

    def seconds(self, node: NodeProfile, first: int, end: int) -> float:
        """Seconds of a decode step: bound by memory, or by arithmetic if there are many rows."""
        read, flops = self._read[end] - self._read[first], self._flops[end] - self._flops[first]
        if self._last(end):
            read, flops = read + self.model.head.size, flops + self.model.head.flops(self.rows)
        return max(read / node.bytes_per_second, flops / node.flops)

    def summed(self, kv_tokens: int) -> tuple[list[float], list[int], list[int]]:
        """Of the layers before each: what a step reads, its operations, and the bytes of weights, keys and values."""
        taken = [held + kv * kv_tokens for held, kv in zip(self._held, self._kv, strict=True)]
        return self._read, self._flops, taken

    def beside(self, node: NodeProfile, end: int) -> tuple[int, int, int]:
        """What the head adds to a step of a stage that ends there: bytes read, operations; and the bytes left for layers on the node."""
        last, head = self._last(end), self.model.head
        free = node.memory - self.model.workspace - (head.size + self.model.last_bytes if last else 0)
        return (head.size, head.flops(self.rows), free) if last else (0, 0, free)

    def room(self, node: NodeProfile, first: int, end: int, kv_tokens: int) -> int:
        """Bytes for weights, beside everything else."""
        return node.memory - self.memory(first, end, kv_tokens) + self.weights(first, end)

    def streamed(self, node: NodeProfile, first: int, end: int, room: int) -> Streamed | None:
        """If only so many bytes of the weights are in memory; None if that is too few. What every step reads comes while it computes;
        experts come when they are chosen."""
        if (first, end) not in self._sizes:
            sizes = StageSizes.of(self.model, first, end)
            self._sizes[first, end] = sizes, least_expected(sizes)
        sizes, least = self._sizes[first, end]
        if node.disk <= 0 or room < least:
            return None
        division = divide(sizes, room)
        constant, missed = division.streamed(sizes) / node.disk, division.missed(sizes)
        every, chosen = (missed / node.disk * (summed[end] - summed[first]) for summed in (self._experts, self._touched))
        prefill = max(self.prefill_seconds(node, first, end), (constant + every) / _CHUNK)
        return Streamed(max(self.seconds(node, first, end), constant) + chosen, prefill, every)

    def prefill_seconds(self, node: NodeProfile, first: int, end: int) -> float:
        return (self._row_flops[end] - self._row_flops[first]) / node.flops


Order = tuple[NodeProfile, ...]


def _all_orders(nodes: Sequence[NodeProfile]) -> Iterator[Order]:
    for count in range(1, len(nodes) + 1):
        yield from permutations(nodes, count)


def _likely_orders(nodes: Sequence[NodeProfile]) -> Iterator[Order]:
    """Orders to try when there are too many for all: by speed and by memory, both ways, each member also as the last, where the
    head is."""
    by_speed = sorted(nodes, key=lambda n: (-n.bytes_per_second, n.name))
    by_memory = sorted(nodes, key=lambda n: (-n.memory, n.name))
    for ranked in (by_speed, by_memory):
        for count in range(1, len(nodes) + 1):
            chosen = ranked[:count]
            yield tuple(chosen[::-1])
            for i in range(count):
                yield (*chosen[:i], *chosen[i + 1 :], chosen[i])


def _neighbours(order: Order, nodes: Sequence[NodeProfile]) -> Iterator[Order]:
    """Orders that differ by one swap, one node less or one node more."""
    for i in range(len(order)):
        yield (*order[:i], *order[i + 1 :])
        for j in range(i + 1, len(order)):
            yield (*order[:i], order[j], *order[i + 1 : j], order[i], *order[j + 1 :])
    for node in nodes:
        if node not in order:
            yield from ((*order[:i], node, *order[i:]) for i in range(len(order) + 1))


def split(order: Sequence[NodeProfile], costs: Costs, kv_tokens: int, streaming: bool = False) -> list[int] | None:
    """Boundaries [0, …, layers] that minimise the slowest stage, with at least one layer per node; None if memory does not suffice.
    streaming: whether nodes may hold less than all of their layers."""
    layers, infinite = len(costs.model.layers), float("inf")
    read, flops, taken = costs.summed(kv_tokens)
    best = [0.0] + [infinite] * layers
    choices: list[list[int]] = []
    for index, node in enumerate(order):
        left = len(order) - index - 1
        new, choice = [infinite] * (layers + 1), [0] * (layers + 1)
        latest = max((first for first, value in enumerate(best) if value < infinite), default=-1)
        for end in range(index + 1, layers - left + 1) if left else (layers,):
            more_read, more_flops, free = costs.beside(node, end)
            for first in range(min(end - 1, latest), index - 1, -1):  # both costs grow as `first` falls: stop when one is too high
                reading = (read[end] - read[first] + more_read) / node.bytes_per_second
                computing = (flops[end] - flops[first] + more_flops) / node.flops
                seconds = reading if reading > computing else computing
                if seconds >= new[end]:
                    break
                if taken[end] - taken[first] > free:
                    room = costs.room(node, first, end, kv_tokens)
                    if not streaming or (found := costs.streamed(node, first, end, room)) is None or found.decode >= new[end]:
                        break
                    seconds = found.decode
                value = seconds if seconds > best[first] else best[first]
                if value < new[end]:
                    new[end], choice[end] = value, first
        best = new
        choices.append(choice)
    if best[layers] == infinite:
        return None
    bounds = [layers]
    for choice in reversed(choices):
        bounds.append(choice[bounds[-1]])
    return bounds[::-1]


def placed(order: Sequence[NodeProfile], bounds: list[int], costs: Costs, links: LinkSpeeds, demand: Demand, kv_tokens: int) -> Placement:
    stages = tuple(_stage(n, a, b, costs, kv_tokens) for n, a, b in zip(order, bounds[:-1], bounds[1:], strict=True))
    names = ["", *(n.name for n in order), ""]
    hops = 0.0
    for i, (a, b) in enumerate(pairwise(names)):
        link = links.between(a, b)
        carried = costs.model.activation_bytes * costs.rows if 0 < i < len(order) else 0
        hops += link.seconds + carried / link.bytes_per_second
    return Placement(stages, kv_tokens, hops, demand.slots)


def _stage(node: NodeProfile, first: int, end: int, costs: Costs, kv_tokens: int) -> StagePlan:
    weights = costs.weights(first, end)
    if (room := costs.room(node, first, end, kv_tokens)) < weights and (found := costs.streamed(node, first, end, room)) is not None:
        return StagePlan(node.name, first, end, weights, found.decode, found.prefill, room, found.experts)
    return StagePlan(node.name, first, end, weights, costs.seconds(node, first, end), costs.prefill_seconds(node, first, end))


def place(
    nodes: Sequence[NodeProfile], links: LinkSpeeds, model: ModelCost, demand: Demand, at_least: int = 1, at_most: int | None = None
) -> Placement:
    """The best split over `at_least` to `at_most` of the nodes. If memory is short, the KV pool shrinks, down to the least size; if that
    does not suffice, either, nodes that can stream weights from their disks do so.

    Raises CapacityError without nodes, NotEnoughMemory if even the least pool does not fit.
    """
    if not nodes:
        raise CapacityError("no node has joined; start one with `shoal join`")
    at_least = min(at_least, len(nodes), len(model.layers))
    at_most = max(at_least, min(at_most or len(nodes), len(nodes), len(model.layers)))
    counts = range(at_least, at_most + 1)
    for kv_tokens in _pools(demand):
        if (best := _best(nodes, links, model, demand, counts, kv_tokens, streaming=False)) is not None:
            return best
    streamed = [p for kv in _pools(demand) if (p := _best(nodes, links, model, demand, counts, kv, streaming=True)) is not None]
    if streamed and demand.given:
        return streamed[0]
    if streamed:  # memory for keys and values is missing for weights: the largest pool that costs little speed
        fastest = max(p.tokens_per_second for p in streamed)
        return next(p for p in streamed if p.tokens_per_second >= _NEARLY * fastest)
    raise _shortage(nodes, model, at_least, demand.least_kv_tokens)


def _pools(demand: Demand) -> Iterator[int]:
    """Sizes of the KV pool to try, in tokens."""
    kv_tokens = max(demand.kv_tokens, demand.least_kv_tokens)
    while kv_tokens > demand.least_kv_tokens:
        yield kv_tokens
        kv_tokens //= 2
    yield demand.least_kv_tokens


def _best(
    nodes: Sequence[NodeProfile], links: LinkSpeeds, model: ModelCost, demand: Demand, counts: range, kv_tokens: int, streaming: bool
) -> Placement | None:
    by_count = {count: Costs(model, demand, count) for count in counts}
    found: dict[Order, Placement | None] = {}

    def evaluate(order: Order) -> Placement | None:
        if order not in found:
            costs = by_count.get(len(order))
            bounds = None if costs is None else split(order, costs, kv_tokens, streaming)
            found[order] = None if costs is None or bounds is None else placed(order, bounds, costs, links, demand, kv_tokens)
        return found[order]

    if len(nodes) <= _TRY_ALL:
        return _choose([p for order in _all_orders(nodes) if (p := evaluate(order)) is not None])
    chosen = _choose([p for order in _likely_orders(nodes) if (p := evaluate(order)) is not None])
    by_name = {node.name: node for node in nodes}
    while chosen is not None:  # climb until no single change helps
        order = tuple(by_name[stage.node] for stage in chosen.stages)
        near = [p for other in _neighbours(order, nodes) if (p := evaluate(other)) is not None]
        better = _choose([chosen, *near])
        if better is None or better.tokens_per_second <= chosen.tokens_per_second * 1.001:
            break
        chosen = better
    return chosen


def _choose(found: list[Placement]) -> Placement | None:
    """The fastest; among equally fast ones, the one with the least latency."""
    if not found:
        return None
    best = max(p.tokens_per_second for p in found)
    near = [p for p in found if p.tokens_per_second >= 0.99 * best]
    return min(near, key=lambda p: (p.latency, len(p.stages), tuple(s.node for s in p.stages)))


def _shortage(nodes: Sequence[NodeProfile], model: ModelCost, at_least: int, kv_tokens: int) -> NotEnoughMemory:
    layers = [layer.held_bytes + layer.kv_bytes * kv_tokens for layer in model.layers]
    needed = sum(layers) + model.head.size + model.workspace * at_least + model.last_bytes
    available = sum(n.memory for n in nodes)
    if needed > available:
        return NotEnoughMemory(needed, available)
    # The total memory would suffice, but some part fits no node.
    part = max(*layers, layers[-1] + model.head.size + model.last_bytes) + model.workspace
    largest = max(n.memory for n in nodes)
    return NotEnoughMemory(
        max(part, largest + 1), largest, "one node's part of the model, whose layers do not fit these nodes in any split"
    )
