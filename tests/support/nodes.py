"""Nodes, models and demands to place, and what every placement holds."""

from __future__ import annotations

from hypothesis import strategies as st

from shoal.placement.cost import ExpertsCost, LayerCost, Matrices, ModelCost
from shoal.placement.partition import Placement
from shoal.placement.profile import Demand, NodeProfile

MB = 1 << 20


def node(name: str, memory: int = 1000 * MB, speed: float = 10e9, flops: float = 1e12) -> NodeProfile:
    return NodeProfile(name, memory, speed, flops)


def model(layers: int = 6, layer: int = 10 * MB, head: int = 5 * MB, kv: int = 1024) -> ModelCost:
    """Equal layers, whose parameters take a byte each."""
    return ModelCost((LayerCost(Matrices(layer, layer), kv, attention=4096),) * layers, Matrices(head, head), 4096, MB)


DEMAND = Demand(slots=8, kv_tokens=4096, least_kv_tokens=256)


def assert_whole(placement: Placement, cost: ModelCost, nodes: list[NodeProfile]) -> None:
    """Every layer once, in order, and each part within its node's memory."""
    memory = {n.name: n.memory for n in nodes}
    assert [s.first for s in placement.stages] == [0, *(s.end for s in placement.stages[:-1])]
    assert placement.stages[-1].end == len(cost.layers)
    assert len({s.node for s in placement.stages}) == len(placement.stages)
    for s in placement.stages:
        assert s.layers >= 1
        kv = sum(layer.kv_bytes for layer in cost.layers[s.first : s.end]) * placement.kv_tokens
        assert s.weight_bytes + kv + cost.workspace <= memory[s.node]


def clusters(most: int) -> st.SearchStrategy[list[NodeProfile]]:
    speeds = st.tuples(st.integers(20, 150), st.sampled_from([1e9, 3e9, 10e9, 40e9]), st.sampled_from([1e11, 1e12, 1e13]))
    return st.lists(speeds, min_size=1, max_size=most).map(
        lambda found: [NodeProfile(f"n{i}", memory * MB, speed, flops) for i, (memory, speed, flops) in enumerate(found)]
    )


def matrices(most: int) -> st.SearchStrategy[Matrices]:
    """Up to `most` bytes of 4 to 32 bits per parameter."""
    return st.builds(lambda size, bits: Matrices(size, 8 * size // bits + 1), st.integers(1, most), st.sampled_from([4, 8, 32]))


def experts() -> st.SearchStrategy[ExpertsCost]:
    def of(count: int) -> st.SearchStrategy[ExpertsCost]:
        return st.builds(ExpertsCost, st.just(count), st.integers(1, count), matrices(MB // 4))

    return st.integers(1, 128).flatmap(of)


def layers() -> st.SearchStrategy[LayerCost]:
    """Layers that differ in everything: dense or with experts, windows, sizes of keys and values."""
    window = st.sampled_from([0, 0, 16, 128, 4096])
    return st.builds(LayerCost, matrices(20 * MB), st.integers(16, 8192), st.integers(64, 65536), window, st.none() | experts())


def models(most: int) -> st.SearchStrategy[ModelCost]:
    """Models of up to so many layers that differ."""
    return st.builds(
        ModelCost,
        st.lists(layers(), min_size=1, max_size=most).map(tuple),
        matrices(60 * MB),
        st.sampled_from([1024, 65536]),
        st.integers(0, 4 * MB),
        st.sampled_from([0, MB]),
    )
