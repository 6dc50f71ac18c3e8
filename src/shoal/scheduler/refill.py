"""Steps that recompute the keys and values of lost layers.

When a node is lost, another node takes over its layers with empty blocks, while all other layers still hold theirs. A refill step carries
the tokens of the sequences again, like a prompt, and `spans`: the lost ranges of layers. Stages run only their layers inside a span, and
the last stage samples nothing. Sequences are refilled oldest first, in steps of at most `step_tokens` rows. A block that several
sequences share is filled once, with the first of them; a block that no sequence holds is not filled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from shoal.request import BlockId, RequestId
from shoal.scheduler.cost import StepCost, StepLoad
from shoal.scheduler.plan import Chunk, StepPlan
from shoal.scheduler.sequence import Sequence
from shoal.scheduler.slots import Slots


class Refill:
    def __init__(
        self,
        slots: Slots,
        cost: StepCost | None,
        apart: set[RequestId],
        number: Callable[[], int],
        ended: Callable[[Sequence], None],
    ) -> None:
        """apart: requests that run in steps of their own. number: gives the next step's number. ended: called for a sequence that had
        already ended when its table was sent to the stages."""
        self._slots, self._cost, self._apart = slots, cost, apart
        self._number, self._ended = number, ended

    def wanted(self, only: set[int] | None = None) -> list[Sequence]:
        """The sequences with computed tokens. only: limits them to these, and to those that share a block with one of them, directly or
        through others: those blocks were filled from it."""
        filled = [s for s in self._slots.running if s.computed]
        if only is None:
            return filled
        found: list[Sequence] = []
        touched = {block for s in filled if s.id in only for block in s.table}
        for sequence in filled:
            if not touched.isdisjoint(sequence.table):
                found.append(sequence)
                touched.update(sequence.table)
        return found

    def steps(self, spans: list[tuple[int, int]], wanted: list[Sequence], missing: set[int]) -> Iterator[StepPlan]:
        """wanted: the sequences to fill, oldest first. missing: grows while the steps run; no more steps are made for the sequences in it,
        because a stage could not refill them. A sequence that ends meanwhile is filled all the same: others may share its blocks.
        """
        filled: set[BlockId] = set()
        chunks: list[Chunk] = []
        budget = self._slots.limits.step_tokens
        # Copies, because a sequence may end while its steps run and then loses its table.
        for sequence, table, untold in [(s, list(s.table), s.table[s.told :]) for s in wanted]:
            alone = sequence.request.id in self._apart
            for at, upto in self._unfilled(sequence.computed, table, filled):
                while at < upto and sequence.id not in missing:
                    if budget <= 0 or (chunks and (alone or chunks[-1].sequence == sequence.id)):  # a step names each sequence only once
                        yield self._refilling(chunks, spans)
                        chunks, budget = [], self._slots.limits.step_tokens
                        continue
                    rows = min(upto - at, budget)
                    fitting = self._refillable(chunks, at, rows)
                    if fitting == 0:
                        budget = 0
                        continue
                    chunks.append(Chunk(sequence.id, at, sequence.tokens[at : at + fitting], [int(b) for b in untold], False))
                    sequence.told, untold = len(table), []
                    if sequence.done:
                        self._ended(sequence)
                    budget = 0 if alone or fitting < rows else budget - fitting
                    at += fitting
        if chunks:
            yield self._refilling(chunks, spans)

    def _refillable(self, chunks: list[Chunk], at: int, rows: int) -> int:
        """How many of the rows may join a step. All other work waits for it, so its time is limited; a step has at least one row."""
        if self._cost is None or not self._slots.limits.wait:
            return rows
        load = sum((StepLoad.of_chunk(chunk) for chunk in chunks), StepLoad())
        fitting = self._cost.fitting(load, at, rows, False, 2 * self._slots.limits.wait)
        return fitting if chunks else max(fitting, 1)

    def _unfilled(self, computed: int, table: list[BlockId], filled: set[BlockId]) -> Iterator[tuple[int, int]]:
        """Runs of computed tokens whose blocks no sequence before this one has filled. Marks them as filled."""
        size, at = self._slots.limits.block_tokens, 0
        own = [block not in filled for block in table]
        filled.update(table[: self._slots.blocks_for(computed)])
        while at < computed:
            upto = at
            while upto < computed and own[upto // size]:
                upto += size
            if upto > at:
                yield at, min(upto, computed)
            at = max(upto, at + size)

    def _refilling(self, chunks: list[Chunk], spans: list[tuple[int, int]]) -> StepPlan:
        return StepPlan(self._number(), [], [], [], [], chunks, spans)
