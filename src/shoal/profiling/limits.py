"""What the stages' computing could take at the least: what the nodes measured, and what the model costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from shoal.placement.cost import Matrices, ModelCost
from shoal.placement.profile import NodeProfile
from shoal.profiling.profile import StageLimit, steps_by_kind
from shoal.profiling.slices import Run


@dataclass(frozen=True)
class Costing:
    """attention: of each layer, a part of its `LayerCost.always`. context: tokens that a row attends to, on average."""

    model: ModelCost
    attention: tuple[Matrices, ...]
    context: int


def stage_limits(run: Run, bounds: Sequence[tuple[int, int]], nodes: Sequence[NodeProfile], costing: Costing) -> list[StageLimit]:
    """bounds: layers [first, end) of each stage; nodes: in the same order."""
    out: list[StageLimit] = []
    for i, ((first, end), node) in enumerate(zip(bounds, nodes, strict=True)):
        needed = _needed(first, end, costing)
        for kind, steps in steps_by_kind(run):
            memory = arithmetic = least = 0.0
            for step in steps:
                found = needed(step.rows, step.tokens)
                reading = sum(size for size, _ in found.values()) / node.bytes_per_second
                computing = sum(flops for _, flops in found.values()) / node.flops
                memory, arithmetic, least = memory + reading, arithmetic + computing, least + max(reading, computing)
            compute = sum(step.stages[i].compute for step in steps)
            out.append(
                StageLimit(
                    node.name,
                    kind,
                    len(steps),
                    compute,
                    memory,
                    arithmetic,
                    "memory" if memory >= arithmetic else "arithmetic",
                    least / compute if compute else 0.0,
                )
            )
    return out


def estimated_parts(
    run: Run, bounds: Sequence[tuple[int, int]], nodes: Sequence[NodeProfile], costing: Costing
) -> dict[tuple[str, str], dict[str, float]]:
    """The least seconds of each part of computing, by node and kind of steps. The rest as for `stage_limits`."""
    out: dict[tuple[str, str], dict[str, float]] = {}
    for (first, end), node in zip(bounds, nodes, strict=True):
        needed = _needed(first, end, costing)
        for kind, steps in steps_by_kind(run):
            parts = out[node.name, kind] = dict.fromkeys(needed(1, 0), 0.0)
            for step in steps:
                for name, (size, flops) in needed(step.rows, step.tokens).items():
                    parts[name] += max(size / node.bytes_per_second, flops / node.flops)
    return out


def _needed(first: int, end: int, costing: Costing) -> Callable[[int, int], dict[str, tuple[float, float]]]:
    """Bytes read and operations of a stage's step, by part, from its rows and sampled tokens."""
    model, context = costing.model, costing.context
    layers = [*zip(model.layers[first:end], costing.attention[first:end], strict=True)]

    @cache
    def needed(rows: int, sampled: int) -> dict[str, tuple[float, float]]:
        out = {"attention": [0.0, 0.0], "feed-forward": [0.0, 0.0], "experts": [0.0, 0.0], "head": [0.0, 0.0]}
        for layer, attention in layers:
            attended = min(context, layer.window) if layer.window else context
            out["attention"][0] += attention.size + layer.kv_read(context) * max(sampled, 1)
            out["attention"][1] += attention.flops(rows) + layer.attention * attended * rows
            out["feed-forward"][0] += layer.always.size - attention.size
            out["feed-forward"][1] += layer.always.flops(rows) - attention.flops(rows)
            if layer.experts is not None:
                out["experts"][0] += layer.experts.touched(rows) * layer.experts.each.size
                out["experts"][1] += layer.experts.each.flops(rows * layer.experts.chosen)
        if end == len(model.layers) and sampled:
            out["head"] = [float(model.head.size), float(model.head.flops(sampled))]
        return {name: (size, flops) for name, (size, flops) in out.items()}

    return needed
