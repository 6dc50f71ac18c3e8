"""Layers over nodes that stream what they cannot hold: as good as the partition where all fits, and better than none where it does not."""

from __future__ import annotations

import importlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import ConfigError, NotEnoughMemory
from shoal.placement.cost import ModelCost
from shoal.placement.joint import JointStage, place_jointly
from shoal.placement.partition import Costs, split
from shoal.placement.profile import Demand, NodeProfile
from tests.support.nodes import DEMAND, MB, clusters, model, models, node

KV = 512


def slowest(stages: tuple[JointStage, ...]) -> float:
    return max(stage.seconds for stage in stages)


def assert_sound(stages: tuple[JointStage, ...], nodes: list[NodeProfile], cost: ModelCost) -> None:
    assert [(s.first, s.node) for s in stages] == list(zip([0, *(s.end for s in stages[:-1])], [n.name for n in nodes], strict=True))
    assert stages[-1].end == len(cost.layers)
    for stage, here in zip(stages, nodes, strict=True):
        assert stage.end > stage.first
        kv = sum(layer.kv_bytes for layer in cost.layers[stage.first : stage.end]) * KV
        assert stage.held_bytes + kv + cost.workspace <= here.memory * (1 + 1e-6)


@settings(max_examples=40)
@given(clusters(3), models(6))
def test_where_all_fits_it_is_the_partition(nodes: list[NodeProfile], cost: ModelCost):
    """And where it does not fit without streaming, both say so."""
    if len(nodes) > len(cost.layers):
        return
    costs = Costs(cost, DEMAND, len(nodes))
    bounds = split(nodes, costs, KV)
    if bounds is None:
        with pytest.raises(NotEnoughMemory):
            place_jointly(nodes, {}, cost, DEMAND, KV)
        return
    stages = place_jointly(nodes, {}, cost, DEMAND, KV)
    assert_sound(stages, nodes, cost)
    best = max(costs.seconds(n, a, b) for n, a, b in zip(nodes, bounds[:-1], bounds[1:], strict=True))
    assert slowest(stages) == pytest.approx(best, rel=1e-4)


@settings(max_examples=25)
@given(clusters(3), models(5), st.sampled_from([1e8, 1e9]))
def test_a_disk_never_makes_it_slower(nodes: list[NodeProfile], cost: ModelCost, disk: float):
    if len(nodes) > len(cost.layers):
        return
    disks = {n.name: disk for n in nodes}
    try:
        without = slowest(place_jointly(nodes, {}, cost, DEMAND, KV))
    except NotEnoughMemory:
        without = float("inf")
    try:
        stages = place_jointly(nodes, disks, cost, DEMAND, KV)
    except NotEnoughMemory:
        assert without == float("inf")
        return
    assert_sound(stages, nodes, cost)
    assert slowest(stages) <= without * (1 + 1e-4)


def test_what_does_not_fit_is_streamed_by_the_node_with_a_disk():
    """Eight layers of 10 MB over a node that holds three of them and one with room for two and a fast disk."""
    small, disk = node("small", 32 * MB), node("disk", 50 * MB)
    cost = model(layers=8, head=0)
    with pytest.raises(NotEnoughMemory):
        place_jointly([small, disk], {}, cost, DEMAND, KV)
    stages = place_jointly([small, disk], {"disk": 1e9}, cost, DEMAND, KV)
    assert_sound(stages, [small, disk], cost)
    assert stages[0].streamed_bytes == 0
    assert stages[1].streamed_bytes > 0
    held = stages[1].held_bytes + stages[1].streamed_bytes
    assert held == pytest.approx((stages[1].end - stages[1].first) * 10 * MB, rel=1e-4)


def test_layers_move_away_from_a_slow_disk():
    cost, nodes = model(layers=8, head=0), [node("a", 36 * MB), node("b", 36 * MB)]
    stages = place_jointly(nodes, {"a": 1e8, "b": 2e9}, cost, DEMAND, KV)
    assert stages[1].end - stages[1].first > stages[0].end - stages[0].first


def test_what_is_missing_is_said_in_bytes():
    """Two nodes of 32 MB hold 30 MB of layers each at most, beside a workspace of 1 MB and half a MB of keys and values per layer."""
    cost = model(layers=8, head=0)
    with pytest.raises(NotEnoughMemory, match="missing") as caught:
        place_jointly([node("a", 32 * MB), node("b", 32 * MB)], {}, cost, DEMAND, KV)
    assert caught.value.needed - caught.value.available == pytest.approx(8 * 10.5 * MB + 2 * MB - 64 * MB, rel=1e-3)


def test_more_nodes_than_layers_are_refused():
    with pytest.raises(ConfigError, match="cannot share"):
        place_jointly([node("a"), node("b")], {}, model(layers=1), DEMAND, KV)


def test_without_scipy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    real = importlib.import_module

    def absent(name: str, package: str | None = None):
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ConfigError, match=r"shoal\[plan\]"):
        place_jointly([node("a")], {}, model(), Demand(8, KV, KV), KV)
