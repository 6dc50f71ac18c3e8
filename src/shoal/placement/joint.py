"""Which node of a pipeline runs which layers and which part of them it holds, decided at once: the slowest stage is to be as fast as
possible, and what a node does not hold it reads from its disk for every step.

A mixed-integer linear program, solved by HiGHS through `scipy.optimize.milp` (the extra `shoal[plan]`). Where everything fits, its
slowest stage is that of `partition.split`, which knows no streaming.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.errors import ConfigError, NotEnoughMemory
from shoal.placement.cost import ModelCost
from shoal.placement.profile import Demand, NodeProfile

_BUFFERS = 2  # layers of which a node has a part on its way
_MB, _MS = 1e6, 1e-3  # units of the program, so that its numbers are neither tiny nor huge


@dataclass(frozen=True)
class JointStage:
    node: str
    first: int
    end: int
    held_bytes: int
    """Of weights."""
    streamed_bytes: float
    """Of weights, expected to be read from disk in a decode step."""
    seconds: float
    """Predicted for a decode step."""


class _Program:
    """Rows of a linear program over named variables: columns are made as they are named."""

    def __init__(self) -> None:
        self.columns: dict[object, int] = {}
        self.whole: list[int] = []
        self.most: list[float] = []
        self._values: list[float] = []
        self._at: tuple[list[int], list[int]] = ([], [])
        self.low: list[float] = []
        self.high: list[float] = []

    def variable(self, name: object, most: float = float("inf"), whole: bool = False) -> None:
        """At least 0."""
        self.columns[name] = len(self.columns)
        self.most.append(most)
        self.whole.append(int(whole))

    def row(self, terms: Mapping[object, float], low: float = float("-inf"), high: float = float("inf")) -> None:
        for name, factor in terms.items():
            self._values.append(factor)
            self._at[0].append(len(self.low))
            self._at[1].append(self.columns[name])
        self.low.append(low)
        self.high.append(high)

    def solve(self, goal: Mapping[object, float]) -> dict[object, float] | None:
        """The variables where the sum of the goal is least; None if there is no solution."""
        optimize, sparse = _scipy("scipy.optimize"), _scipy("scipy.sparse")
        matrix = sparse.csr_array((self._values, self._at), shape=(len(self.low), len(self.columns)))
        found = optimize.milp(
            [goal.get(name, 0.0) for name in self.columns],
            integrality=self.whole,
            bounds=optimize.Bounds([0.0] * len(self.most), self.most),
            constraints=optimize.LinearConstraint(matrix, self.low, self.high),
            options={"mip_rel_gap": 1e-6},
        )
        return None if found.x is None else dict(zip(self.columns, (float(x) for x in found.x), strict=True))


def _scipy(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as fault:
        raise ConfigError("planning over several nodes needs scipy, which is not installed; pip install 'shoal[plan]'") from fault


def place_jointly(
    order: Sequence[NodeProfile], disks: Mapping[str, float], model: ModelCost, demand: Demand, kv_tokens: int
) -> tuple[JointStage, ...]:
    """The best split over all nodes of `order`, each with at least one layer; the head is held by the last.

    disks: bytes per second of each node's disk in reads of weights; a node that is not in it streams nothing.
    Raises NotEnoughMemory, ConfigError without scipy or with more nodes than layers.
    """
    if not 1 <= len(order) <= len(model.layers):
        raise ConfigError(f"{len(order)} nodes cannot share {len(model.layers)} layers")
    problem = _Problem(order, disks, model, demand, kv_tokens)
    found = problem.program(short=False).solve({"slowest": 1.0})
    if found is None:
        short = problem.program(short=True).solve({("short", n): 1.0 for n in range(len(order))})
        missing = sum(short[("short", n)] for n in range(len(order))) * _MB if short else 0.0
        available = sum(node.memory for node in order)
        raise NotEnoughMemory(available + max(round(missing), 1), available, "the model, in any split over these nodes")
    return problem.stages(found)


class _Problem:
    def __init__(self, order: Sequence[NodeProfile], disks: Mapping[str, float], model: ModelCost, demand: Demand, kv_tokens: int) -> None:
        self._order, self._model, self._kv_tokens = order, model, kv_tokens
        self._disks = [disks.get(node.name, 0.0) for node in order]
        self._rows = rows = max(1, demand.slots // len(order))
        self._weights = [layer.read_bytes(rows) for layer in model.layers]
        self._read = [layer.read_bytes(rows) + layer.kv_read(demand.context) * rows for layer in model.layers]

    def program(self, short: bool) -> _Program:
        """The variables: ("on", n, l) is 1 if node n runs layer l, ("held", n, l) the part of it that is held there, ("buffer", n)
        MB, and "slowest" in ms. short: with ("short", n), MB that node n may use beyond its memory."""
        out, nodes, layers = _Program(), range(len(self._order)), range(len(self._model.layers))
        out.variable("slowest")
        for n in nodes:
            out.variable(("buffer", n))
            out.variable(("short", n), float("inf") if short else 0.0)
            for layer in layers:
                out.variable(("on", n, layer), 1.0, whole=True)
                out.variable(("held", n, layer), 1.0)
        for layer in layers:
            out.row({("on", n, layer): 1.0 for n in nodes}, 1.0, 1.0)
            if layer:  # no layer is on an earlier node than the one before it
                after: dict[object, float] = {("on", n, layer): float(n) for n in nodes}
                out.row(after | {("on", n, layer - 1): -float(n) for n in nodes}, low=0.0)
        for n in nodes:
            out.row({("on", n, layer): 1.0 for layer in layers}, low=1.0)
            self._node(out, n)
        return out

    def _node(self, out: _Program, n: int) -> None:
        node, model, last = self._order[n], self._model, n == len(self._order) - 1
        reading: dict[object, float] = {"slowest": -1.0}
        computing: dict[object, float] = {"slowest": -1.0}
        streaming: dict[object, float] = {"slowest": -1.0}
        memory: dict[object, float] = {("buffer", n): 1.0, ("short", n): -1.0}
        for layer, cost in enumerate(model.layers):
            on, held = ("on", n, layer), ("held", n, layer)
            reading[on] = self._read[layer] / node.bytes_per_second / _MS
            computing[on] = cost.flops(self._rows) / node.flops / _MS
            memory[on], memory[held] = cost.kv_bytes * self._kv_tokens / _MB, cost.held_bytes / _MB
            if self._disks[n]:
                out.row({on: 1.0, held: -1.0}, low=0.0)
                streaming[on] = self._weights[layer] / self._disks[n] / _MS
                streaming[held] = -streaming[on]
                part = _BUFFERS * cost.held_bytes / _MB
                out.row({("buffer", n): 1.0, on: -part, held: part}, low=0.0)
            else:
                out.row({on: 1.0, held: -1.0}, 0.0, 0.0)
        head = model.head if last else None
        fixed = model.workspace + (model.last_bytes if last else 0) + (head.size if head else 0)
        out.row(memory, high=(node.memory - fixed) / _MB)
        out.row(reading, high=-(head.size if head else 0) / node.bytes_per_second / _MS)
        out.row(computing, high=-(head.flops(self._rows) if head else 0) / node.flops / _MS)
        if self._disks[n]:
            out.row(streaming, high=0.0)

    def stages(self, found: Mapping[object, float]) -> tuple[JointStage, ...]:
        """The solution, its numbers computed anew from which layers are where, so that no rounding of the solver is in them."""
        out, first, count = list[JointStage](), 0, len(self._model.layers)
        for n, node in enumerate(self._order):
            end = first + sum(found["on", n, layer] > 0.5 for layer in range(count))
            mine, head = range(first, end), self._model.head if n == len(self._order) - 1 else None
            shares = {layer: min(max(found["held", n, layer], 0.0), 1.0) if self._disks[n] else 1.0 for layer in mine}
            streamed = sum((1 - shares[layer]) * self._weights[layer] for layer in mine)
            read = sum(self._read[layer] for layer in mine) + (head.size if head else 0)
            flops = sum(self._model.layers[layer].flops(self._rows) for layer in mine) + (head.flops(self._rows) if head else 0)
            held = sum(int(shares[layer] * self._model.layers[layer].held_bytes) for layer in mine) + (head.size if head else 0)
            disk = streamed / self._disks[n] if self._disks[n] else 0.0
            out.append(JointStage(node.name, first, end, held, streamed, max(read / node.bytes_per_second, flops / node.flops, disk)))
            first = end
        return tuple(out)
