"""The eviction policy that adapts: the unit goes whose next use is expected to be the farthest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from shoal.weights.unit import Unit

HALF_LIFE = 32.0
"""Visits to a layer after which a use counts half."""
REPEATS_HALF_LIFE = 2048.0
"""The same for repeats, in units needed."""
GUESS_RECALL = 0.85
"""How often a guess has to come true to be worth a read (below that, prefetching cost more than it brought)."""


class ExpectedUse:
    """Estimates Belady's rule, "evict what is needed farthest in the future", from what was needed before.

    A step visits every layer once. A unit that a visit needs with probability p is therefore needed 1/p - 1 steps, on average, after
    the next visit to its layer. p = w + (1 - w)·f if the last visit to the layer needed the unit, otherwise (1 - w)·f. f is the
    unit's decayed frequency. w says how much likelier a unit is needed because it just was. It is learned from how many units are
    needed twice running beyond those that f explains.

    So the order is that of LRU where tokens repeat their experts, and that of LFU where some experts are popular. Where every step
    needs nearly everything, the layer just done goes first, as is best in a loop, of which LRU would hold nothing. A step that
    needs much more than usual, as for a prompt, will do so in the layers ahead as well: these keep what they have.

    Layers are compared by the distance to the next visit alone, and that changes only with visits. So every layer has its own order,
    and a victim costs one maximum over the layers.

    experts: the units of each layer; 0 where a layer has none.
    """

    def __init__(self, experts: Sequence[int], half_life: float = HALF_LIFE) -> None:
        self._decay = math.log(2) / half_life
        self._layers = [_Layer(count) for count in experts]
        self._cycle = max(sum(count > 0 for count in experts), 1)
        """Visits to layers in a step."""
        self._now = 0
        """Visits to layers so far."""
        self._farthest = [-1.0] * len(experts)
        """Per layer: when the unit of it that would go is expected to be needed, in visits; -1 if none is offered."""
        self._changed: set[int] = set()
        """Layers whose entry of `_farthest` is out of date."""
        self._repeated, self._repeatable, self._explained = 0.0, 0.0, 0.0
        """Decayed: units that were needed at two visits running, units of the first, and how many of these frequency explains."""
        self._usual = 0.0
        """The share of its layer's units that a visit needs, decayed."""
        self._breadth = 0.0
        """That of the step under way if it is much more than usual; otherwise 0."""
        self._step_began = 0
        """When, in visits."""
        self._previous = -1
        """The layer of the last visit."""

    def visit(self, layer: int, experts: Sequence[int]) -> None:
        here = self._layers[layer]
        if not here.frequency:
            return
        self._now += 1
        here.visited = self._now
        here.visits += 1
        now, frequency = here.visits * self._decay, here.frequency
        here.scale = _uses_of_all(here.visits, self._decay)
        self._notice_breadth(layer, len(experts) / len(here.frequency))
        if here.last:
            self._learn(here, experts, now)
        for expert in experts:
            frequency[expert] = now + math.log1p(math.exp(frequency[expert] - now))
        for entry in here.recent:  # what the visit before needed and this one does not is no longer recent
            if here.offered[entry[1]] and entry[0] == frequency[entry[1]]:
                heappush(here.others, entry)
        here.recent = []
        here.last = set(experts)
        here.recency = min(self._usual * len(here.frequency) / max(len(experts), 1), 1.0)
        self._changed.add(layer)

    def _notice_breadth(self, layer: int, share: float) -> None:
        """share: of the layer's units, those that the visit needs."""
        self._usual += (share - self._usual) * (self._decay / self._cycle if self._usual else 1.0)
        breadth = share if share > 2 * self._usual else 0.0
        step_begins = layer <= self._previous
        self._previous = layer
        if step_begins:
            self._step_began = self._now
        if breadth != self._breadth or (step_begins and breadth):
            self._breadth = breadth
            self._changed.update(range(len(self._layers)))

    def _learn(self, here: _Layer, experts: Sequence[int], now: float) -> None:
        last, frequency = here.last, here.frequency
        share = here.recency
        explained = sum([math.exp(frequency[expert] - now) for expert in last]) * here.scale
        keep = math.exp2(-len(last) * share / REPEATS_HALF_LIFE)
        self._repeatable = self._repeatable * keep + len(last) * share
        self._repeated = self._repeated * keep + len(last.intersection(experts)) * share
        self._explained = self._explained * keep + explained * share

    @property
    def repetition(self) -> float:
        """w: 0 (that a unit was just needed says nothing) to 1 (it is needed again for sure)."""
        unexplained = self._repeatable - self._explained
        return min(max((self._repeated - self._explained) / unexplained, 0.0), 1.0) if unexplained > 0 else 0.0

    def offer(self, layer: int, experts: Sequence[int]) -> None:
        here = self._layers[layer]
        recent, others, last, frequency, offered = here.recent, here.others, here.last, here.frequency, here.offered
        for expert in experts:
            offered[expert] = True
            heappush(recent if expert in last else others, (frequency[expert], expert))
        if len(others) + len(recent) > 4 * len(frequency) + 64:
            here.tidy()
        self._changed.add(layer)

    def keep(self, layer: int, experts: Sequence[int]) -> None:
        offered = self._layers[layer].offered
        for expert in experts:
            offered[expert] = False
        self._changed.add(layer)

    def victim(self) -> Unit | None:
        self._refresh()
        farthest = max(self._farthest)
        if farthest < 0:
            return None
        layer = self._farthest.index(farthest)
        here = self._layers[layer]
        expert = heappop(self._order(here)[1])[1]
        here.offered[expert] = False
        self._changed.add(layer)
        return Unit(layer, expert)

    def worth(self, guess: Unit) -> bool:
        """As if it were needed at the next visit to its layer with the probability `GUESS_RECALL`."""
        self._refresh()
        return max(self._farthest) > self._expected(self._layers[guess.layer], GUESS_RECALL)

    def _refresh(self) -> None:
        for layer in self._changed:
            here = self._layers[layer]
            probability, order = self._order(here)
            self._farthest[layer] = self._expected(here, probability) if order else -1.0
        self._changed.clear()

    def _expected(self, here: _Layer, probability: float) -> float:
        """When a unit is expected to be needed, in visits: the next one to its layer, and as many steps after as it may take."""
        steps = 1 / max(probability, 1e-9) - 1
        if self._breadth and here.visited < self._step_began:  # the next visit is this step's
            steps = (1 - self._breadth) * (steps + 1)
        return here.visited + self._cycle * (1 + steps)

    def _order(self, here: _Layer) -> tuple[float, list[tuple[float, int]]]:
        """The probability that the next visit needs the unit that would go, and the heap that has it on top: empty if there is none."""
        w, now = self.repetition * here.recency, here.visits * self._decay
        other, recent = here.top(here.others), here.top(here.recent)
        p_other = (1 - w) * here.scale * math.exp(other - now)
        p_recent = w + (1 - w) * here.scale * math.exp(recent - now)
        if here.others and (not here.recent or p_other <= p_recent):
            return p_other, here.others
        return p_recent, here.recent


class _Layer:
    __slots__ = ("frequency", "last", "offered", "others", "recency", "recent", "scale", "visited", "visits")

    def __init__(self, experts: int) -> None:
        self.visits = 0
        self.visited = 0
        """When, in visits to all layers."""
        self.scale = 1.0
        """Turns a decayed sum of uses into a frequency."""
        self.frequency = [-math.inf] * experts
        """Logarithm of the sum of e^(decay · visit) over the uses. So it changes with a use alone."""
        self.last: set[int] = set()
        """What the last visit needed."""
        self.recency = 1.0
        """Less if those were more than usual, as for a prompt: only some of them can be needed again."""
        self.offered = [False] * experts
        self.recent: list[tuple[float, int]] = []
        """A heap of (frequency, expert) of those offered that the last visit needed. Entries of others may be left in it."""
        self.others: list[tuple[float, int]] = []
        """The same for the rest."""

    def top(self, order: list[tuple[float, int]]) -> float:
        """The least frequency in a heap, after entries on top that no longer count have been dropped; -inf if it is empty."""
        while order and not (self.offered[order[0][1]] and order[0][0] == self.frequency[order[0][1]]):
            heappop(order)
        return order[0][0] if order else -math.inf

    def tidy(self) -> None:
        """Leaves one entry for each unit that is offered."""
        units = {expert for _, expert in (*self.recent, *self.others) if self.offered[expert]}
        self.recent = [(self.frequency[expert], expert) for expert in units & self.last]
        self.others = [(self.frequency[expert], expert) for expert in units - self.last]
        heapify(self.recent)
        heapify(self.others)


def _uses_of_all(visits: int, decay: float) -> float:
    """One over the decayed count that a unit has that every one of `visits` needed."""
    return (1 - math.exp(-decay)) / (1 - math.exp(-decay * visits))
