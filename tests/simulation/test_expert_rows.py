"""Counts of rows by expert on their way to the head: nodes are lost, started anew and come back, layers move, the head dies. No count falls,
and none is added twice."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from shoal.control import messages as control
from shoal.executor.base import Program, StageOutput
from shoal.executor.journal import JournalLimits
from shoal.executor.store import RowCounts
from shoal.scheduler.plan import StepPlan
from shoal.telemetry.expert_use import ExpertUse
from shoal.testing import toy
from tests.support.town import LAYERS, Counts, Town, play

EXPERTS = 3
SPARSE = range(1, LAYERS)
"""Layers that have experts."""


class Model(toy.ToyModel):
    """The toy model, said to have experts: each row takes the one of its token, and the one after that."""

    def __init__(self) -> None:
        super().__init__(LAYERS, JournalLimits(1 << 20, 0))
        self.computed = {layer: np.zeros(EXPERTS, np.uint64) for layer in SPARSE}

    @property
    def expert_rows(self) -> dict[int, RowCounts]:
        return {layer: rows.copy() for layer, rows in self.computed.items()}

    def enter(self, layers: range, keep: range, blocks: int, memory: int = 0, remote: Any = None) -> Any:
        return _Counting(super().enter(layers, keep, blocks, memory), layers, self)


class _Counting:
    def __init__(self, stage: Any, layers: range, model: Model) -> None:
        self._stage, self._layers, self._model = stage, layers, model
        self.nbytes, self.runtime, self.hidden = stage.nbytes, stage.runtime, stage.hidden

    def program(self, plan: StepPlan, hidden: Any) -> Program[StageOutput]:
        tokens = np.array([token for chunk in plan.chunks for token in chunk.tokens], np.int64)
        spans = plan.spans or [(0, LAYERS)]
        for layer in SPARSE:
            if layer in self._layers and any(first <= layer < end for first, end in spans):
                for expert in (tokens % EXPERTS, (tokens + 1) % EXPERTS):
                    self._model.computed[layer] += np.bincount(expert, minlength=EXPERTS).astype(np.uint64)
        return (yield from self._stage.program(plan, hidden))


class Told(Counts):
    """What the heads of the town count."""

    def __init__(self) -> None:
        super().__init__()
        self.use = ExpertUse(dict.fromkeys(SPARSE, EXPERTS), {"model": "toy"})
        self.reports: dict[str, int] = {}

    def report(self, node: str, report: control.PipelineReport) -> None:
        before = self.counted()
        for rows in report.expert_rows:
            assert self.use.add(rows.layer, rows.rows)
        assert all(a <= b for layer, rows in before.items() for a, b in zip(rows, self.counted()[layer], strict=True))
        self.reports[node] = self.reports.get(node, 0) + bool(report.expert_rows)

    def counted(self) -> dict[int, list[int]]:
        counted = {layer: [0] * EXPERTS for layer in SPARSE}
        for sample in next(iter(self.use.collect())).samples:
            counted[int(sample.labels["layer"])][int(sample.labels["expert"])] = int(sample.value)
        return counted


class Busy(Town):
    def __init__(self, **settings: object) -> None:
        self.told = Told()
        super().__init__(self.told, **settings)
        self.models: list[Model] = []

    def model(self, name: str, order: control.Load) -> Model:
        self.models.append(made := Model())
        return made

    async def work(self, name: str) -> None:
        request = self.request(name, 20)
        assert await self.answer(request) == toy.expected(request, LAYERS)[0]

    def computed(self) -> dict[int, list[int]]:
        return {layer: np.sum([model.computed[layer] for model in self.models], axis=0).tolist() for layer in SPARSE}

    def missing(self) -> dict[int, list[int]]:
        """What was computed and is not counted."""
        counted, computed = self.told.counted(), self.computed()
        return {layer: [a - b for a, b in zip(computed[layer], counted[layer], strict=True)] for layer in SPARSE}

    async def all_told(self) -> None:
        await self.until(lambda: self.told.counted() == self.computed())
        await asyncio.sleep(20)
        assert self.told.counted() == self.computed()

    async def two(self) -> None:
        for name in "ab":
            self.start(name)
        await self.serving(2)


def test_all_that_the_nodes_computed_is_counted_and_seldom_told() -> None:
    async def scenario(town: Busy) -> None:
        await town.two()
        began = asyncio.get_running_loop().time()
        for i in range(12):
            await town.work(str(i))
            await asyncio.sleep(1)
        await town.all_told()
        passed = asyncio.get_running_loop().time() - began
        assert set(town.told.reports) == {"a", "b"}
        assert max(town.told.reports.values()) <= passed / 5 + 1
        assert all(len(set(rows)) > 1 for rows in town.told.counted().values())

    play(scenario, Busy, min_nodes=2, spread=True)


def test_layers_move_to_a_node_and_back() -> None:
    async def scenario(town: Busy) -> None:
        await town.two()
        await town.work("before")
        await town.all_told()
        await town.kill("a")
        await town.serving(1)
        await town.work("between")
        await town.all_told()
        town.start("a")
        await town.serving(2)
        await town.work("after")
        await town.all_told()
        assert len(town.models) == 3

    play(scenario, Busy, min_nodes=2, spread=True)


def test_a_node_whose_connections_broke_tells_what_it_had_not() -> None:
    async def scenario(town: Busy) -> None:
        await town.two()
        await town.work("first")  # told at once; the next is not
        await asyncio.sleep(1)
        await town.work("second")
        assert town.told.counted() != town.computed()
        a, head = town.hosts["a"], town.hosts["head"]
        for pipe in [*a.pipes]:
            pipe.cut()
        town.network.part(a, head)
        await asyncio.sleep(6)  # so that it may tell something as soon as it is back
        town.network.join(a, head)
        await town.serving(2)
        await town.work("third")
        await town.all_told()
        assert len(town.models) == 2, "a node was started anew"

    play(scenario, Busy, min_nodes=2, spread=True)


def test_what_a_frozen_node_tells_nobody_is_missing_and_nothing_else() -> None:
    async def scenario(town: Busy) -> None:
        await town.two()
        await town.work("first")
        await asyncio.sleep(1)
        await town.work("second")
        untold = town.missing()
        town.network.freeze(town.hosts["a"])
        await town.until(lambda: len(town.head.cluster.members) == 1)
        town.network.thaw(town.hosts["a"])
        await town.serving(2)
        await asyncio.sleep(20)
        missing = town.missing()
        assert all(0 <= n <= most for layer in SPARSE for n, most in zip(missing[layer], untold[layer], strict=True))
        await town.work("third")
        await asyncio.sleep(20)
        assert town.missing() == missing

    play(scenario, Busy, min_nodes=2, spread=True)


def test_another_head_is_not_told_what_the_first_one_asked_for() -> None:
    async def scenario(town: Busy) -> None:
        await town.two()
        await town.work("first")
        await asyncio.sleep(1)
        await town.work("second")
        counted, missing = town.told.counted(), town.missing()
        assert any(sum(rows) for rows in missing.values())
        await town.replace_head()
        await town.serving(2)
        await asyncio.sleep(20)
        assert town.told.counted() == counted
        await town.work("third")
        await asyncio.sleep(20)
        assert town.missing() == missing

    play(scenario, Busy, min_nodes=2, spread=True)
