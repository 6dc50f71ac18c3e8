"""Machines and models to plan for."""

from __future__ import annotations

from hypothesis import strategies as st

from shoal.placement.cost import ExpertsCost, LayerCost, Matrices, ModelCost
from shoal.placement.hardware import Curve, Device, Hardware, Tier, TierLink
from tests.support.nodes import MB

GIB = 1 << 30


def curve(*points: tuple[float, float]) -> Curve:
    return Curve(tuple(rows for rows, _ in points), tuple(flops for _, flops in points))


def processor(memory: int, disk: float = 1.4e9, pace: float = 20e9, flops: float = 300e9) -> Hardware:
    """A machine of a processor over memory and disk, its speed the same for every number of rows."""
    one = Device("processor", 1, pace, (("q4", curve((1, flops))),))
    return Hardware("here", (Tier("disk", 1000 * GIB), Tier("memory", memory)), (TierLink("disk", disk),), (one,))


def with_gpu(
    memory: int, gpu_memory: int, link: float = 12e9, paces: tuple[float, float] = (80e9, 300e9), flops: tuple[float, float] = (1e12, 50e12)
) -> Hardware:
    """A machine with a GPU, and without a disk that is used."""
    devices = (
        Device("processor", 0, paces[0], (("bf16", curve((1, flops[0]))),)),
        Device("GPU", 1, paces[1], (("bf16", curve((1, flops[1]))),)),
    )
    return Hardware("gpu", (Tier("memory", memory), Tier("GPU memory", gpu_memory)), (TierLink("link", link),), devices)


def moe(layers: int = 16, hidden: int = 2048, width: int = 768, count: int = 128, chosen: int = 8, bits: float = 4.5) -> ModelCost:
    """A Mixture of Experts, by default in the shape of Qwen3-30B-A3B with a third of its layers, without a head."""

    def matrices(parameters: int) -> Matrices:
        return Matrices(int(parameters * bits / 8), parameters)

    attention = 2 * hidden * 4096 + 2 * hidden * 512
    layer = LayerCost(matrices(attention), 2048, 4 * 4096, experts=ExpertsCost(count, chosen, matrices(3 * hidden * width)))
    return ModelCost((layer,) * layers, Matrices(0, 0), 4 * hidden, 0)


def mixtral() -> ModelCost:
    """Mixtral 8x7B in 16 bits; buffers as MoE-Lightning's fused kernel needs them."""
    hidden, width, kv, chosen = 4096, 14336, 1024, 2
    attention, expert = 2 * hidden * hidden + 2 * hidden * kv, 3 * hidden * width
    layer = LayerCost(Matrices(2 * attention, attention), 4 * kv, 4 * hidden, experts=ExpertsCost(8, chosen, Matrices(2 * expert, expert)))
    head, row = 32000 * hidden, 1.2 * 2 * chosen * (hidden + 3 * width) + 4 * hidden
    return ModelCost((layer,) * 32, Matrices(2 * head, head), 2 * hidden, 0, row_bytes=round(row))


def machines() -> st.SearchStrategy[Hardware]:
    """With and without a GPU, of all proportions, and memories that are sometimes too small."""
    sizes = st.integers(4, 400).map(lambda size: size * MB)
    paces = st.sampled_from([1e8, 1e9, 1e10, 1e11])
    speeds = st.sampled_from([1e9, 1e11, 1e13])
    return st.one_of(
        st.builds(processor, sizes, paces, paces, speeds),
        st.builds(with_gpu, sizes, sizes, paces, st.tuples(paces, paces), st.tuples(speeds, speeds)),
    )
