"""What would help: each change is tried with the placement's own predictor, on the split that runs and on a new one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from shoal.errors import CapacityError
from shoal.placement.cost import ModelCost
from shoal.placement.partition import Costs, Placement, place, placed
from shoal.placement.profile import Demand, LinkSpeed, LinkSpeeds, NodeProfile
from shoal.profiling.profile import WhatIf


@dataclass(frozen=True)
class Situation:
    """A cluster as it runs. order: the nodes of the stages; bounds: [0, …, layers]. threads: by node."""

    order: tuple[NodeProfile, ...]
    bounds: tuple[int, ...]
    model: ModelCost
    links: LinkSpeeds
    demand: Demand
    threads: Mapping[str, int]

    def running(self) -> Placement:
        costs = Costs(self.model, self.demand, len(self.order))
        return placed(self.order, [*self.bounds], costs, self.links, self.demand, self.demand.kv_tokens)

    def anew(self, at_least: int) -> Placement:
        """Raises CapacityError."""
        return place(self.order, self.links, self.model, self.demand, at_least)

    def best(self) -> float:
        """Tokens per second, of the split that runs or of a new one over the same nodes, whichever is faster."""
        now = self.running().tokens_per_second
        try:
            return max(now, self.anew(len(self.order)).tokens_per_second)
        except CapacityError:
            return now


def changes(now: Situation) -> list[WhatIf]:
    """The most helpful first."""
    base = now.running().tokens_per_second
    found = [WhatIf(words, speed, speed / base - 1, why) if not why else WhatIf(words, why=why) for words, speed, why in _tried(now)]
    return sorted(found, key=lambda one: (bool(one.why), -one.gain))


def _tried(now: Situation) -> Iterator[tuple[str, float, str]]:
    """(words, tokens per second, why there are none)."""
    running = now.running()
    slowest = max(zip(running.stages, now.order, strict=True), key=lambda pair: pair[0].seconds)[1]
    yield "the layers split anew over the same nodes", now.best(), ""
    yield f"twice the memory bandwidth on {slowest.name}", _with(now, slowest, 2.0, 1.0).best(), ""
    yield f"twice the arithmetic on {slowest.name}", _with(now, slowest, 1.0, 2.0).best(), ""
    if (threads := now.threads.get(slowest.name, 0)) > 0:
        more = (threads + 1) / threads
        yield f"one more thread on {slowest.name}, at most", _with(now, slowest, more, more).best(), ""
    slow = max(now.order, key=lambda node: now.links.between("", node.name).seconds)
    link = now.links.between("", slow.name)
    quicker = LinkSpeeds({**now.links.to_head, slow.name: LinkSpeed(link.seconds / 2, link.bytes_per_second)})
    yield f"a link to {slow.name} of half the latency", replace(now, links=quicker).best(), ""
    if len(now.order) > 1:
        for node in now.order:
            yield f"without {node.name}", *_without(now, node)


def _with(now: Situation, node: NodeProfile, memory: float, arithmetic: float) -> Situation:
    faster = replace(node, bytes_per_second=node.bytes_per_second * memory, flops=node.flops * arithmetic)
    return replace(now, order=tuple(faster if one is node else one for one in now.order))


def _without(now: Situation, node: NodeProfile) -> tuple[float, str]:
    others = tuple(one for one in now.order if one is not node)
    try:
        return replace(now, order=others).anew(1).tokens_per_second, ""
    except CapacityError as error:
        return 0.0, str(error)


def sequence_of(bounds: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """[(0, 3), (3, 8)] → (0, 3, 8)."""
    return (0, *(end for _, end in bounds))
