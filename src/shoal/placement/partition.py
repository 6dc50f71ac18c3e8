"""Splits a model's layers over nodes so that the slowest stage is as fast as can be.

For one order of nodes this is the classic contiguous min-max partition, by dynamic programming over (node, layers placed),
after PipeDream (Narayanan et al., 2019, section 3.1); orders and subsets are tried on top. Ties go to the lower latency, so a
node that gains nothing is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, permutations

from shoal.errors import CapacityError, NotEnoughMemory
from shoal.placement.profile import Demand, Links, ModelCost, NodeProfile

_TRY_ALL = 4  # nodes up to which every order of every subset is tried: 64 orders; above, orders by speed


@dataclass(frozen=True)
class StagePlan:
    node: str
    first: int
    end: int
    weight_bytes: int
    seconds: float
    """Predicted for a decode step of all lanes' share."""
    prefill_seconds: float
    """Predicted per token."""

    @property
    def layers(self) -> int:
        return self.end - self.first


@dataclass(frozen=True)
class Placement:
    stages: tuple[StagePlan, ...]
    kv_tokens: int
    hop_seconds: float
    """Of a decode step over all links, head to head."""
    lanes: int

    @property
    def slowest(self) -> float:
        return max(stage.seconds for stage in self.stages)

    @property
    def latency(self) -> float:
        return sum(stage.seconds for stage in self.stages) + self.hop_seconds

    @property
    def tokens_per_second(self) -> float:
        """With all lanes busy: every stage works on its share of them at once."""
        share = max(1, self.lanes // len(self.stages))
        return share / max(self.slowest, self.latency / len(self.stages))

    @property
    def prefill_per_second(self) -> float:
        return 1 / max(stage.prefill_seconds for stage in self.stages)


class _Costs:
    """Costs of layer ranges on a node, from prefix sums."""

    def __init__(self, model: ModelCost, demand: Demand, stages: int) -> None:
        self.model = model
        self.prefix = [0, *accumulate(model.layer_bytes)]
        self.rows = max(1, demand.lanes // stages)
        self.kv_read = model.kv_bytes * demand.context * self.rows

    def weights(self, first: int, end: int) -> int:
        return self.prefix[end] - self.prefix[first] + (self.model.head_bytes if end == self.model.layers else 0)

    def memory(self, first: int, end: int, kv_tokens: int) -> int:
        return self.weights(first, end) + (end - first) * self.model.kv_bytes * kv_tokens + self.model.workspace

    def _operations(self, first: int, end: int) -> float:
        head = self.model.head_parameters if end == self.model.layers else 0
        return 2.0 * ((end - first) * self.model.layer_parameters + head)

    def seconds(self, node: NodeProfile, first: int, end: int) -> float:
        """A decode step: bound by memory, or by arithmetic where the rows are many."""
        read = self.weights(first, end) + (end - first) * self.kv_read
        return max(read / node.bytes_per_second, self._operations(first, end) * self.rows / node.flops)

    def prefill_seconds(self, node: NodeProfile, first: int, end: int) -> float:
        return 2.0 * (end - first) * self.model.layer_parameters / node.flops


def _orders(nodes: Sequence[NodeProfile]) -> Iterator[tuple[NodeProfile, ...]]:
    if len(nodes) <= _TRY_ALL:
        for count in range(1, len(nodes) + 1):
            yield from permutations(nodes, count)
        return
    by_speed = sorted(nodes, key=lambda n: (-n.bytes_per_second, n.name))
    by_memory = sorted(nodes, key=lambda n: (-n.memory, n.name))
    for count in range(1, len(nodes) + 1):
        yield tuple(by_speed[:count])
        yield tuple(by_memory[:count])
    yield tuple(nodes)


def _split(order: Sequence[NodeProfile], costs: _Costs, kv_tokens: int) -> list[int] | None:
    """Boundaries [0, …, layers] that minimise the slowest stage, every node taking at least a layer; None if memory forbids."""
    layers, infinite = costs.model.layers, float("inf")
    best = [0.0] + [infinite] * layers
    choices: list[list[int]] = []
    for index, node in enumerate(order):
        left = len(order) - index - 1
        new, choice = [infinite] * (layers + 1), [0] * (layers + 1)
        ends = range(index + 1, layers - left + 1) if left else (layers,)
        for end in ends:
            for first in range(index, end):
                if best[first] == infinite or costs.memory(first, end, kv_tokens) > node.memory:
                    continue
                value = max(best[first], costs.seconds(node, first, end))
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


def _placed(order: Sequence[NodeProfile], bounds: list[int], costs: _Costs, links: Links, demand: Demand, kv_tokens: int) -> Placement:
    stages = tuple(
        StagePlan(n.name, a, b, costs.weights(a, b), costs.seconds(n, a, b), costs.prefill_seconds(n, a, b))
        for n, a, b in zip(order, bounds[:-1], bounds[1:], strict=True)
    )
    names = ["", *(n.name for n in order), ""]
    hops = 0.0
    for i, (a, b) in enumerate(zip(names, names[1:], strict=False)):
        link = links.between(a, b)
        carried = costs.model.activation_bytes * costs.rows if 0 < i < len(order) else 0
        hops += link.seconds + carried / link.bytes_per_second
    return Placement(stages, kv_tokens, hops, demand.lanes)


def place(nodes: Sequence[NodeProfile], links: Links, model: ModelCost, demand: Demand, at_least: int = 1) -> Placement:
    """The best split over `at_least` or more of the nodes. The KV pool shrinks, down to the least, where memory is short.

    Raises CapacityError without nodes, NotEnoughMemory where even the least does not fit.
    """
    if not nodes:
        raise CapacityError("no node has joined; start some with `shoal join`")
    at_least = min(at_least, len(nodes), model.layers)
    kv_tokens = max(demand.kv_tokens, demand.least_kv_tokens)
    while True:
        found: list[Placement] = []
        for order in _orders(nodes):
            if not at_least <= len(order) <= model.layers:
                continue
            costs = _Costs(model, demand, len(order))
            if (bounds := _split(order, costs, kv_tokens)) is not None:
                found.append(_placed(order, bounds, costs, links, demand, kv_tokens))
        if found:
            best = max(p.tokens_per_second for p in found)
            near = [p for p in found if p.tokens_per_second >= 0.99 * best]
            return min(near, key=lambda p: (p.latency, len(p.stages), tuple(s.node for s in p.stages)))
        if kv_tokens == demand.least_kv_tokens:
            break
        kv_tokens = max(kv_tokens // 2, demand.least_kv_tokens)
    needed = sum(model.layer_bytes) + model.head_bytes + model.layers * model.kv_bytes * kv_tokens + model.workspace * max(at_least, 1)
    available = sum(n.memory for n in nodes)
    if needed <= available:  # together it would do, but no split lets every part fit
        largest = max(model.layer_bytes) + model.kv_bytes * kv_tokens + model.workspace + model.head_bytes
        raise NotEnoughMemory(max(largest, needed), available, "any split of the model over these nodes")
    raise NotEnoughMemory(needed, available)
