"""From one placement to the next: when nodes are lost, join, leave or turn out slow, move as little as is worthwhile.

A loss is repaired by the cheapest sound way: a spare node takes the lost layers, the neighbours take them, or all layers are
placed anew over the remaining nodes. Each is a candidate with two costs in seconds: the pause now (loading weights, and
refilling lost keys and values), and how much slower it will be over the next minute than the fastest candidate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from shoal.errors import CapacityError, NotEnoughMemory
from shoal.placement.cost import ModelCost
from shoal.placement.partition import Costs, Order, Placement, StagePlan, place, placed, split
from shoal.placement.profile import Demand, LinkSpeeds, NodeProfile

_HORIZON = 60.0  # seconds over which a pause must pay for itself
_LOADING = 500e6  # bytes per second at which a node loads weights
_GAIN = 1.15  # a move that is not forced must be this many times as fast as the running placement
_AS_HELD = 0.8  # of the best speed: at this or more, layers stay where they already are


@dataclass(frozen=True)
class Residency:
    """What a node already has of the model."""

    loaded: tuple[range, ...] = ()
    """Layers whose weights are loaded."""
    filled: range = range(0)
    """Layers whose keys and values are good."""


def spans(stages: Iterable[tuple[range, range]], layers: int) -> list[tuple[int, int]]:
    """Layers [first, end) whose keys and values are gone, given each stage's layers and those that it keeps; adjacent ranges
    are joined."""
    good = [layer for mine, keep in stages for layer in mine if layer in keep]
    out: list[tuple[int, int]] = []
    for layer in sorted(set(range(layers)) - set(good)):
        if out and out[-1][1] == layer:
            out[-1] = (out[-1][0], layer + 1)
        else:
            out.append((layer, layer + 1))
    return out


def overlap(a: range, b: range) -> range:
    low, high = max(a.start, b.start), min(a.stop, b.stop)
    return range(low, high) if low < high else range(0)


@dataclass
class Moves:
    """The goals of a placement. `spread`: every node gets a layer. `spares`: number of nodes kept idle as replacements."""

    model: ModelCost
    demand: Demand
    spread: bool = False
    spares: int = 0
    links: LinkSpeeds = field(default_factory=LinkSpeeds)

    def _bounds(self, nodes: int) -> tuple[int, int]:
        """Least and most number of stages."""
        most = max(1, min(nodes - self.spares, len(self.model.layers)))
        return (most if self.spread else 1), most

    def _placed(self, nodes: Sequence[NodeProfile], demand: Demand) -> Placement:
        """If it cannot be that every node gets a layer, because one is too small for any, over as many as can. Raises CapacityError."""
        least, most = self._bounds(len(nodes))
        for stages in range(least, 1, -1):
            with suppress(NotEnoughMemory):
                return place(nodes, self.links, self.model, demand, stages, most)
        return place(nodes, self.links, self.model, demand, 1, most)

    def first(self, nodes: Sequence[NodeProfile], residencies: Mapping[str, Residency]) -> Placement:
        """A placement for a model that is not served yet. Raises CapacityError."""
        least, most = self._bounds(len(nodes))
        best = self._placed(nodes, self.demand)
        least, held = min(least, len(best.stages)), self._as_held(nodes, residencies, best.kv_tokens)
        if held is not None and least <= len(held.stages) <= most and held.tokens_per_second >= _AS_HELD * best.tokens_per_second:
            return held
        return best

    def _as_held(self, nodes: Sequence[NodeProfile], residencies: Mapping[str, Residency], kv_tokens: int) -> Placement | None:
        """A placement that leaves the layers where they already are, if every layer is somewhere."""
        at, order, bounds = 0, list[NodeProfile](), [0]
        while at < len(self.model.layers):
            starting = [
                (layers.stop, node)
                for node in nodes
                if node not in order
                for layers in residencies.get(node.name, Residency()).loaded
                if layers.start == at and layers.stop <= len(self.model.layers)
            ]
            if not starting:
                return None
            at, node = max(starting, key=lambda found: (found[0], found[1].name))
            order.append(node)
            bounds.append(at)
        return self._sound(tuple(order), bounds, kv_tokens)

    def recover(
        self, old: Placement, nodes: Sequence[NodeProfile], residencies: Mapping[str, Residency], tokens: int, beside: bool = False
    ) -> Placement:
        """A placement over `nodes`, when some nodes of the old one may be gone. Raises CapacityError.

        tokens: computed, of all sequences. beside: the old placement goes on serving meanwhile; a placement that fits beside it
        is preferred.
        """
        here = {node.name: node for node in nodes}
        found = [*self._mended(old, here), *self._anew(nodes, old.kv_tokens)]
        if beside:
            found = [p for p in found if self._fits_beside(p, here, residencies)] or found
        if not found and self.spares:  # using a spare now is what spares are for
            found = replace(self, spares=0)._anew(nodes, old.kv_tokens)
        if not found:
            try:
                return self._placed(nodes, self.demand)
            except CapacityError:
                if not self.spares:
                    raise
                return place(nodes, self.links, self.model, self.demand)  # using a spare now is what spares are for
        return min(found, key=lambda p: self._cost(p, found, residencies, tokens, beside))

    def improve(self, now: Placement, nodes: Sequence[NodeProfile], residencies: Mapping[str, Residency], tokens: int) -> Placement | None:
        """A placement that is worth moving to from the running one, if there is one. The weights of both must fit side by side."""
        here = {node.name: node for node in nodes}
        streaming = now.streams  # then the new layers are loaded when these make room
        running = now
        if not streaming:  # as the nodes are known now
            running = self._sound(tuple(here[s.node] for s in now.stages), now_bounds(now), now.kv_tokens)
        if running is None:
            return None
        least, most = self._bounds(len(nodes))
        found = [
            p
            for p in (*self._inserted(now, here), *self._anew(nodes, now.kv_tokens))
            if least <= len(p.stages) <= most and (streaming or self._fits_beside(p, here, residencies))
        ]
        forced = len(now.stages) < least
        worth = [p for p in found if forced or p.tokens_per_second > _GAIN * running.tokens_per_second]
        if not worth:
            return None
        best = min(worth, key=lambda p: self._cost(p, worth, residencies, tokens, loaded=True))
        return best if forced or self.pays(best, running, residencies, tokens) else None

    def pays(self, p: Placement, running: Placement, residencies: Mapping[str, Residency], tokens: int) -> bool:
        """Whether a move from the running placement saves more time than the pause takes. Weights are loaded while that goes on serving."""
        both = [p, running]
        return self._cost(p, both, residencies, tokens, loaded=True) < self._cost(running, both, residencies, tokens)

    def takes(self, placement: Placement, beside: Placement | None = None) -> dict[str, int]:
        """Bytes of each node's memory. beside: a placement that runs until this one does, while the weights of both are in memory."""
        costs = Costs(self.model, self.demand, len(placement.stages))

        def alone(stage: StagePlan, kv_tokens: int) -> int:
            return costs.memory(stage.first, stage.end, kv_tokens) - costs.weights(stage.first, stage.end) + stage.held_bytes

        out = {stage.node: alone(stage, placement.kv_tokens) for stage in placement.stages}
        for running in beside.stages if beside is not None else ():
            both, coming = alone(running, placement.kv_tokens), out.get(running.node, 0)
            for new in placement.stages:
                if new.node == running.node and not (new.memory or running.memory):  # else one makes room for the other
                    same = overlap(range(running.first, running.end), range(new.first, new.end))
                    both += costs.weights(new.first, new.end) - costs.weights(same.start, same.stop)
            out[running.node] = max(both, coming)
        return out

    def with_pool(self, kv_tokens: int) -> Moves:
        """The same, for a pool of keys and values of that size."""
        return replace(self, demand=Demand(self.demand.slots, kv_tokens, kv_tokens, self.demand.context))

    # Candidates

    def _sound(self, order: Order, bounds: Sequence[int], kv_tokens: int) -> Placement | None:
        """The placement, if every part fits its node."""
        costs = Costs(self.model, self.demand, len(order))
        parts = zip(order, bounds[:-1], bounds[1:], strict=True)
        if any(a >= b or costs.memory(a, b, kv_tokens) > node.memory for node, a, b in parts):
            return None
        return placed(order, list(bounds), costs, self.links, self.demand, kv_tokens)

    def _anew(self, nodes: Sequence[NodeProfile], kv_tokens: int) -> list[Placement]:
        try:
            return [self._placed(nodes, self.with_pool(kv_tokens).demand)]
        except CapacityError:
            return []

    def _mended(self, old: Placement, here: Mapping[str, NodeProfile]) -> Iterator[Placement]:
        """The old placement, with each run of lost stages taken over by one spare or by its neighbours."""
        stages = [(s.node, s.first, s.end) for s in old.stages]
        yield from self._mend(stages, here, old.kv_tokens)

    def _mend(self, stages: list[tuple[str, int, int]], here: Mapping[str, NodeProfile], kv_tokens: int) -> Iterator[Placement]:
        at = next((i for i, (node, _, _) in enumerate(stages) if node not in here), None)
        if at is None:
            order = tuple(here[node] for node, _, _ in stages)
            if (p := self._sound(order, [0, *(end for _, _, end in stages)], kv_tokens)) is not None:
                yield p
            return
        end = next((i for i in range(at, len(stages)) if stages[i][0] in here), len(stages))
        first, last = stages[at][1], stages[end - 1][2]
        before, after = stages[:at], stages[end:]
        used = {node for node, _, _ in stages}
        for spare in here:
            if spare not in used:
                yield from self._mend([*before, (spare, first, last), *after], here, kv_tokens)
        if not before and not after:
            return
        for cut in _cuts(first, last, bool(before), bool(after)):
            left = [*before[:-1], (before[-1][0], before[-1][1], cut)] if before else []
            right = [(after[0][0], cut, after[0][2]), *after[1:]] if after else []
            yield from self._mend([*left, *right], here, kv_tokens)

    def _inserted(self, now: Placement, here: Mapping[str, NodeProfile]) -> Iterator[Placement]:
        """The same nodes with other shares, one more node, or one exchanged, in the same order; always with the best shares."""
        order = tuple(here[s.node] for s in now.stages)
        spare = [node for name, node in here.items() if name not in {s.node for s in now.stages}]
        orders: list[Order] = [order]
        for node in spare:
            orders += [(*order[:i], node, *order[i:]) for i in range(len(order) + 1)]
            orders += [(*order[:i], node, *order[i + 1 :]) for i in range(len(order))]
        for candidate in orders:
            costs = Costs(self.model, self.demand, len(candidate))
            if len(candidate) <= len(self.model.layers) and (bounds := split(candidate, costs, now.kv_tokens)) is not None:
                yield placed(candidate, bounds, costs, self.links, self.demand, now.kv_tokens)

    def _fits_beside(self, p: Placement, here: Mapping[str, NodeProfile], residencies: Mapping[str, Residency]) -> bool:
        """Whether each node can hold its new layers beside those that it runs."""
        costs = Costs(self.model, self.demand, len(p.stages))
        for stage in p.stages:
            held = residencies.get(stage.node, Residency()).filled
            both = overlap(held, range(stage.first, stage.end))
            extra = costs.weights(stage.first, stage.end) - costs.weights(both.start, both.stop)
            running = costs.memory(held.start, held.stop, p.kv_tokens) if len(held) else 0
            if max(running + extra, costs.memory(stage.first, stage.end, p.kv_tokens)) > here[stage.node].memory:
                return False
        return True

    # Costs

    def _cost(
        self, p: Placement, others: Sequence[Placement], residencies: Mapping[str, Residency], tokens: int, loaded: bool = False
    ) -> tuple[float, int]:
        """Seconds, then stages. loaded: weights are loaded while the old route goes on serving."""
        fastest = max(o.tokens_per_second for o in others)
        slower = _HORIZON * (fastest / p.tokens_per_second - 1)
        return self._pause(p, residencies, tokens, loaded) + slower, len(p.stages)

    def _pause(self, p: Placement, residencies: Mapping[str, Residency], tokens: int, loaded: bool) -> float:
        load = fill = 0.0
        for stage in p.stages:
            mine, held = range(stage.first, stage.end), residencies.get(stage.node, Residency())
            have = {layer for layers in held.loaded for layer in overlap(layers, mine)}
            layers = self.model.layers
            load = max(load, sum(layers[layer].held_bytes for layer in mine if layer not in have) / _LOADING)
            lost = sum(layers[layer].flops(1) for layer in mine if layer not in held.filled)
            fill = max(fill, tokens * stage.prefill_seconds * lost / sum(layers[layer].flops(1) for layer in mine))
        return fill + (0.0 if loaded else load)


def now_bounds(placement: Placement) -> list[int]:
    return [0, *(stage.end for stage in placement.stages)]


def _cuts(first: int, last: int, left: bool, right: bool) -> Iterator[int]:
    """Where the lost layers can be cut between the neighbours: few enough places to try all."""
    if not left or not right:
        yield first if not left else last
        return
    count = last - first
    step = max(1, count // 8)
    yield from {first, last, *range(first, last, step)}
