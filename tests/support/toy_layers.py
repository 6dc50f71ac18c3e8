"""Toy stages with several layers, which can be lost: what they have computed of the steps in flight, and the cells of some layers.

Each layer's cell is a hash of its input and of that layer's cells before it, and is the next layer's input. So a layer that was not
filled anew, one that was filled from a wrong row, and a block table that two stages see differently all change what is drawn next.
Journals are kept at every boundary between layers; their rows may be forgotten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from random import Random

from shoal.request import RequestId
from shoal.scheduler.limits import Limits
from shoal.scheduler.plan import Chunk, PromptOutputs, Sampled, StepPlan, StepResult
from shoal.wire import messages
from tests.support.toy_stage import Toy, cell, drawn, examined

Slot = tuple[int, int]
Cells = list[list[int | None]]
LOST = -1


class LayerStage:
    """Some successive layers, in one epoch. The cells and the journals outlive it."""

    def __init__(self, cells: list[Cells], journals: list[dict[Slot, int]], layers: range) -> None:
        self._cells, self._journals, self.layers = cells, journals, layers
        self._last = layers.stop == len(cells)
        self._size = len(cells[0][0])
        self._tables: dict[int, list[int]] = {}
        self._seeds: dict[int, int] = {}

    def __len__(self) -> int:
        """Sequences that it knows of."""
        return len(self._tables.keys() | self._seeds.keys())

    def run(self, plan: StepPlan, given: list[int]) -> tuple[list[int], StepResult]:
        """Rows for the next stage, and the last stage's result, or a refilling step's."""
        self._note(plan)
        if plan.spans:
            return [], StepResult(plan.step, [], [], [chunk.sequence for chunk in plan.chunks if not self._refill(plan, chunk)])
        out: list[int] = []
        sampled: list[Sampled] = []
        told: list[PromptOutputs] = []
        for chunk in plan.chunks:
            rows = chunk.tokens if self.layers.start == 0 else given[len(out) : len(out) + len(chunk.tokens)]
            values = self._forward(chunk, rows, self.layers)
            out += values
            told += examined(chunk, values)
            if chunk.sample and self._last:
                sampled += drawn(chunk, values, self._seeds[chunk.sequence])
        return out, StepResult(plan.step, sampled, [], examined=told)

    def _note(self, plan: StepPlan) -> None:
        for layer in self.layers:
            for source, target in plan.copies:
                self._cells[layer][target] = list(self._cells[layer][source])
                self._copy_journal(layer + 1, source, target)
        for sequence in (*plan.closed, *plan.dropped):
            self._tables.pop(sequence, None)
        for sequence in plan.closed:
            self._seeds.pop(sequence, None)
        for opened in plan.opened:
            assert opened.sequence not in self._seeds, "a sequence was opened twice"
            self._seeds[opened.sequence] = opened.sampling.seed
        assert len({chunk.sequence for chunk in plan.chunks}) == len(plan.chunks), "a sequence is in a step twice"
        for chunk in plan.chunks:
            table = self._tables.setdefault(chunk.sequence, [])
            table.extend(chunk.blocks)
            assert len(set(table)) == len(table), "a block is in a table twice"
            assert chunk.tokens and chunk.position + len(chunk.tokens) <= len(table) * self._size, "tokens outside the table"

    def _copy_journal(self, boundary: int, source: int, target: int) -> None:
        journal = self._journals[boundary]
        for offset in range(self._size):
            journal.pop((target, offset), None)
            if (source, offset) in journal:
                journal[target, offset] = journal[source, offset]

    def _slots(self, chunk: Chunk) -> list[Slot]:
        table = self._tables[chunk.sequence]
        return [(table[p // self._size], p % self._size) for p in range(chunk.position + len(chunk.tokens))]

    def _forward(self, chunk: Chunk, rows: Iterable[int], layers: range) -> list[int]:
        slots, rows = self._slots(chunk), list(rows)
        for layer in layers:
            cells = self._cells[layer]
            for i, (block, offset) in enumerate(slots[chunk.position :]):
                before = [cells[b][o] for b, o in slots[: chunk.position + i]]
                rows[i] = cell([LOST if c is None else c for c in before], rows[i])
                cells[block][offset] = self._journals[layer + 1][block, offset] = rows[i]
        return rows

    def _refill(self, plan: StepPlan, chunk: Chunk) -> bool:
        """Whether every row was known where it had to be."""
        slots, known = self._slots(chunk)[chunk.position :], True
        for first, end in plan.spans:
            assert self.layers == range(len(self._cells)), "spans are refilled by a stage of all layers"
            rows = [self._journals[first].get(slot, LOST) for slot in slots] if first else chunk.tokens
            known &= LOST not in rows
            self._forward(chunk, rows, range(first, end))
        return known


class Layered(Toy):
    """A scheduler before toy stages whose bounds are like (0, 2, 3). Steps wait before each stage until `run`."""

    def __init__(self, limits: Limits, bounds: tuple[int, ...] = (0, 1, 3)) -> None:
        super().__init__(limits)
        self.layers = bounds[-1]
        self._bounds = bounds
        self.refilled: list[StepPlan] = []
        self._empty(limits)

    def _empty(self, limits: Limits) -> None:
        self._cells: list[Cells] = [[[None] * limits.block_tokens for _ in range(limits.blocks)] for _ in range(self.layers)]
        self._journals: list[dict[Slot, int]] = [{} for _ in range(self.layers + 1)]
        self._enter()

    def _enter(self) -> None:
        """A new epoch: the stages know no tables, and nothing is on its way."""
        self.stages = [LayerStage(self._cells, self._journals, range(a, b)) for a, b in pairwise(self._bounds)]
        self._between: list[deque[tuple[StepPlan, list[int]]]] = [deque() for _ in self.stages[1:]]
        self.plans.clear()
        self.results.clear()

    def step_all(self) -> None:
        """Sends what can be sent; one result comes back."""
        self.fill()
        while not self.results and not self.idle:
            self.run()
        self.take()

    @property
    def known(self) -> int:
        """Sequences that some stage still knows of."""
        return sum(len(stage) for stage in self.stages)

    @property
    def idle(self) -> bool:
        return super().idle and not any(self._between)

    def run(self, pick: int = -1) -> None:
        """One stage's next step: of those that have one, the `pick`th."""
        ready = [i for i in range(len(self.stages)) if (self._between[i - 1] if i else self.plans)]
        if not ready:
            return
        at = ready[pick % len(ready)]
        plan, given = self._between[at - 1].popleft() if at else (self.plans.popleft(), [])
        out, result = self.stages[at].run(plan, given)
        if at + 1 < len(self.stages):
            self._between[at].append((plan, out))
        else:
            self.results.append(result)

    def lose(self, spans: list[tuple[int, int]], forgotten: float = 0.0, chance: Random | None = None) -> None:
        """What is on its way, and the cells of some layers. `forgotten`: the share of journal rows that do not reach back."""
        chance = chance or Random(0)
        for layer in {layer for first, end in spans for layer in range(first, end)}:
            self._cells[layer] = [[None] * self.limits.block_tokens for _ in range(self.limits.blocks)]
            self._journals[layer + 1].clear()
        for journal in self._journals:
            for slot in [slot for slot in journal if chance.random() < forgotten]:
                del journal[slot]
        self._enter()
        self.scheduler.rewind()
        self.scheduler.check()

    def forget(self, block: int) -> None:
        """No journal has the rows of a block any more."""
        for journal in self._journals:
            for slot in [slot for slot in journal if slot[0] == block]:
                del journal[slot]

    def recover(self, spans: list[tuple[int, int]], ended: Iterable[str] = ()) -> None:
        """Fills the spans anew as the driver does: again from the tokens where a journal did not reach. `ended`: cancelled meanwhile."""
        whole = LayerStage(self._cells, self._journals, range(self.layers))
        only, leaving = None, list(ended)
        for _ in range(2 if spans else 0):
            missing: set[int] = set()
            for plan in self.scheduler.refill(spans, only, missing):
                missing.update(self._refill(whole, messages.decode_plan(messages.raw(plan))))
                while leaving:
                    self.cancel(leaving.pop())
            self.scheduler.check()
            only = missing
            if not only:
                break
            assert spans != [(0, spans[-1][1])], "tokens are always known"
            spans = [(0, spans[-1][1])]
        else:
            assert not spans, "the second time all is filled from the tokens"
        for stage in self.stages:  # each took the tables from the same plans
            stage._tables = {sequence: list(table) for sequence, table in whole._tables.items()}

    def _refill(self, whole: LayerStage, plan: StepPlan) -> list[int]:
        assert plan.rows <= self.scheduler.limits.step_tokens, "a step over its budget"
        assert not (plan.opened or plan.closed or plan.dropped or plan.copies), "a refilling step does nothing else"
        assert not any(chunk.sample or chunk.asked is not None for chunk in plan.chunks)
        self.refilled.append(plan)
        return whole.run(plan, [])[1].missing

    def restart(self, limits: Limits) -> list[RequestId]:
        """All is lost, and the next route has another pool."""
        self.lose([])
        self.limits = limits
        self._empty(limits)
        lost = self.scheduler.restart(limits)
        self.scheduler.check()
        return lost
