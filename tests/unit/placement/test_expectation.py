"""What people are told about a placement before it has run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shoal.placement.cost import ExpertsCost, LayerCost, Matrices, ModelCost
from shoal.placement.expectation import Expectation, expect, token_reads
from shoal.placement.expert_moves import ExpertMoves
from shoal.placement.moves import Moves
from shoal.placement.partition import Placement, place
from shoal.placement.profile import Demand, LinkSpeed, LinkSpeeds, NodeProfile

MB = 1 << 20
COST = ModelCost(
    (LayerCost(Matrices(2 * MB, MB), 1024, 4096, experts=ExpertsCost(16, 2, Matrices(MB, MB))),) * 4, Matrices(4 * MB, MB), 4096, MB
)
DEMAND = Demand(slots=4, kv_tokens=256, least_kv_tokens=256)


def expected(*memories: int, disk: float = 1e9, links: LinkSpeeds | None = None) -> Expectation:
    nodes = [NodeProfile(f"n{i}", memory * MB, 10e9, 1e12, disk) for i, memory in enumerate(memories)]
    links = links or LinkSpeeds({node.name: LinkSpeed(1e-6, 1e12) for node in nodes})
    placement = place(nodes, links, COST, DEMAND, at_least=len(nodes))
    return expect(placement, {node.name: node for node in nodes}, COST, links, DEMAND)


def test_one_stream_reads_what_one_row_needs() -> None:
    """Held: 2 MB that all rows need and two experts of 1 MB in each of four layers, and the head, at 10 GB/s."""
    held = expected(100)
    kv = 4 * 1024 * DEMAND.context
    assert held.alone == pytest.approx(10e9 / (4 * 4 * MB + 4 * MB + kv), rel=0.01)
    assert held.together > held.alone
    assert held.limit == "memory"


def test_the_disk_is_the_limit_where_experts_are_missing() -> None:
    half, fast = expected(50), expected(50, disk=100e9)
    assert half.limit == "disk" and fast.limit == "memory"
    assert half.alone < fast.alone < expected(100).alone
    # 30 MB less what is beside experts: the share that is missed of two a layer
    assert expected(45).alone < half.alone


def test_the_network_is_the_limit_where_it_takes_longest() -> None:
    slow = LinkSpeeds({f"n{i}": LinkSpeed(1.0, 1e6) for i in range(2)})
    told = expected(60, 60, links=slow)
    assert told.limit == "network" and told.alone < 0.5


def test_it_is_told_for_the_nodes_as_they_are_now() -> None:
    nodes = {"n0": NodeProfile("n0", 100 * MB, 10e9, 1e12)}
    placement = place(list(nodes.values()), LinkSpeeds(), COST, DEMAND)
    slower = {"n0": replace(nodes["n0"], bytes_per_second=5e9)}
    assert expect(placement, slower, COST, LinkSpeeds(), DEMAND).alone < expect(placement, nodes, COST, LinkSpeeds(), DEMAND).alone


def with_worker(seconds: float) -> tuple[Placement, Expectation]:
    """seconds: of the link to it, one way."""
    nodes = [NodeProfile("n0", 60 * MB, 10e9, 1e12), NodeProfile("n1", 60 * MB, 10e9, 1e12, worker=True)]
    links = LinkSpeeds({"n0": LinkSpeed(1e-6, 1e12), "n1": LinkSpeed(seconds, 1e12)})
    placement = ExpertMoves(Moves(COST, DEMAND, links=links)).first(nodes, {})
    return placement, expect(placement, {node.name: node for node in nodes}, COST, links, DEMAND)


def test_one_stream_waits_for_workers() -> None:
    near, far = with_worker(1e-6)[1], with_worker(0.1)[1]
    assert 0 < near.waiting < far.waiting and far.waiting == pytest.approx(5 / 6 * 4 * 0.2, rel=0.01), "not every layer needs any of them"
    assert far.limit == "workers" and 1 / far.alone == pytest.approx(far.waiting, rel=0.01)
    assert expected(100).waiting == 0


def test_what_a_token_reads_is_told_by_where_it_is_read() -> None:
    every = COST.read_bytes(0, len(COST.layers), 1)
    placement, _ = with_worker(0.1)
    nodes = {name: NodeProfile(name, 60 * MB, 10e9, 1e12) for name in ("n0", "n1")}
    reads = token_reads(placement, nodes, COST)
    assert reads.stages + reads.workers == pytest.approx(every) and reads.disk == 0
    elsewhere = sum(map(len, placement.elsewhere)) / (4 * 16)
    assert reads.workers == pytest.approx(elsewhere * 4 * 2 * MB)
    node = NodeProfile("n0", 50 * MB, 10e9, 1e12, 1e9)
    streamed = token_reads(place([node], LinkSpeeds(), COST, DEMAND), {"n0": node}, COST)
    assert streamed.disk > 0 == streamed.workers
    assert streamed.stages + streamed.disk == pytest.approx(every)
