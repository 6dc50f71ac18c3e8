"""What a placement is expected to give, for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from shoal.placement.cost import ModelCost
from shoal.placement.partition import Costs, Placement, placed
from shoal.placement.profile import Demand, LinkSpeeds, NodeProfile


@dataclass(frozen=True)
class Expectation:
    alone: float
    """Tokens per second of a single stream."""
    together: float
    """Of all slots."""
    limit: str
    """What would have to be faster for one stream: 'disk', 'network' or 'memory'."""


def expect(placement: Placement, nodes: Mapping[str, NodeProfile], model: ModelCost, links: LinkSpeeds, demand: Demand) -> Expectation:
    """nodes: those of the placement, by name."""
    order, bounds = [nodes[stage.node] for stage in placement.stages], [0, *(stage.end for stage in placement.stages)]
    costs = Costs(model, replace(demand, slots=1), len(order))
    one = placed(order, bounds, costs, links, demand, placement.kv_tokens)
    held = sum(costs.seconds(node, stage.first, stage.end) for node, stage in zip(order, placement.stages, strict=True))
    shares = {"disk": one.latency - one.hop_seconds - held, "network": one.hop_seconds, "memory": held}
    return Expectation(1 / one.latency, placement.tokens_per_second, max(shares, key=lambda name: shares[name]))
