"""What a placement is expected to give, for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from shoal.placement import experts
from shoal.placement.cost import ModelCost
from shoal.placement.division import StageSizes, divide
from shoal.placement.partition import Costs, Placement, placed
from shoal.placement.profile import Demand, LinkSpeeds, NodeProfile


@dataclass(frozen=True)
class Expectation:
    alone: float
    """Tokens per second of a single stream."""
    together: float
    """Of all slots."""
    limit: str
    """What would have to be faster for one stream: 'disk', 'network', 'memory' or 'workers'."""
    waiting: float = 0.0
    """Seconds of one stream's token in which stages wait for workers."""


@dataclass(frozen=True)
class TokenReads:
    """Bytes of weights that are expected to be read for one stream's token."""

    stages: float
    """From memory."""
    workers: float
    disk: float


def expect(placement: Placement, nodes: Mapping[str, NodeProfile], model: ModelCost, links: LinkSpeeds, demand: Demand) -> Expectation:
    """nodes: those of the placement, by name. model: with all experts."""
    order, bounds = [nodes[stage.node] for stage in placement.stages], [0, *(stage.end for stage in placement.stages)]
    costs = Costs(_own(placement, model), replace(demand, slots=1), len(order))
    one = placed(order, bounds, costs, links, demand, placement.kv_tokens)
    held = sum(costs.seconds(node, stage.first, stage.end) for node, stage in zip(order, placement.stages, strict=True))
    parts = _divided(placement, nodes, model)
    change, waiting = sum(part.change for part in parts), sum(part.waiting for part in parts)
    shares = {"disk": one.latency - one.hop_seconds - held, "network": one.hop_seconds, "memory": held, "workers": waiting}
    limit = max(shares, key=lambda name: shares[name])
    return Expectation(1 / (one.latency + change), placement.tokens_per_second, limit, waiting)


def _divided(placement: Placement, nodes: Mapping[str, NodeProfile], model: ModelCost) -> list[experts.Divided]:
    """One stream's steps, by stage, where there are workers."""
    workers = [(plan, nodes[plan.node]) for plan in placement.workers]
    return [
        experts.divided(model, stage.first, stage.end, nodes[stage.node], workers, placement.elsewhere, stage.asking, 1)
        for stage in placement.stages
        if workers
    ]


def token_reads(placement: Placement, nodes: Mapping[str, NodeProfile], model: ModelCost) -> TokenReads:
    """nodes, model: as above."""
    own = _own(placement, model)
    every, theirs = model.read_bytes(0, len(model.layers), 1), sum(part.read for part in _divided(placement, nodes, model))
    disk = 0.0
    for stage in placement.stages:
        if stage.memory:
            sizes = StageSizes.of(own, stage.first, stage.end)
            division = divide(sizes, stage.memory)
            chosen = own.read_bytes(stage.first, stage.end, 1) - sizes.always - sizes.head
            disk += division.streamed(sizes) + division.missed(sizes) * chosen
    return TokenReads(every - theirs - disk, theirs, disk)


def _own(placement: Placement, model: ModelCost) -> ModelCost:
    """What the stages hold."""
    return experts.without(model, placement.elsewhere) if placement.elsewhere else model
