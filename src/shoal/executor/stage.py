"""A stage of one epoch: embedding on the first stage, layers, sampler on the last.

An ordinary step runs through all layers. A refill step (its plan has spans) recomputes keys and values of some layers: a span's
first input comes from the tokens, from the stage before, or from the journal of the stage that holds the layer before it.
Beyond the span nothing is computed or sent.
"""

from __future__ import annotations

from itertools import groupby, pairwise
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from shoal.errors import RemoteProtocolError
from shoal.executor.base import Activations, Angles, Floats, Ints, Leases, Program, Runtime, StageBatch, StageOutput, here
from shoal.executor.constraint import Holder
from shoal.executor.examination import examine
from shoal.executor.journal import Journal
from shoal.executor.part_counts import PartCounts, PartWatch
from shoal.executor.sampler import Sampler
from shoal.executor.sequences import Sequences
from shoal.models.rope import frequencies
from shoal.models.spec import ModelSpec
from shoal.models.weights import Weights
from shoal.scheduler.plan import Sampled, StepPlan


class StageExecutor:
    """journals: by the layer that follows. embedding: the model's, on the first stage. context: the most tokens of a sequence.
    grammars: which the last stage applies to answers. counts: to which its computing is added."""

    def __init__(
        self,
        spec: ModelSpec,
        layers: range,
        runtime: Runtime,
        store: Leases,
        blocks: int,
        journals: dict[int, Journal],
        embedding: Weights | None = None,
        context: int = 0,
        grammars: Holder | None = None,
        counts: PartCounts | None = None,
    ) -> None:
        self._spec = spec
        self.layers = layers
        self._runtime, self._store = runtime, store
        self._embed = embedding.matrix("embed") if embedding is not None else None
        self._last = self.layers.stop == len(spec.layers)
        self._journals = journals
        self._sequences = Sequences(blocks)
        self._counts = counts or PartCounts()
        self._sampler = Sampler(grammars, spec.vocabulary)
        self._frequencies = [frequencies(rope, width, context) for rope, width in spec.rotations]

    @property
    def hidden(self) -> int:
        return self._spec.hidden

    @property
    def nbytes(self) -> int:
        return self._store.nbytes

    @property
    def runtime(self) -> str:
        return self._runtime.name

    def run(self, plan: StepPlan, hidden: Floats | None) -> StageOutput:
        """A step that needs no experts elsewhere. See `program`."""
        return here(self.program(plan, hidden))

    def program(self, plan: StepPlan, hidden: Floats | None) -> Program[StageOutput]:
        """hidden: [rows, hidden] from the stage before; None on the first. Raises RemoteProtocolError for an invalid plan."""
        began = perf_counter()
        batch = self._sequences.apply(plan)
        self._runtime.copy(plan.copies)
        for journal in self._journals.values():
            journal.copy(plan.copies)
        for sequence in plan.closed:
            self._sampler.close(sequence)
        if self._last:
            for opened in plan.opened:
                self._sampler.open(opened)
        if batch is None:
            return StageOutput(None, [], (perf_counter() - began, 0.0, 0.0))
        if plan.spans:
            return (yield from self._refill(plan, batch, hidden, began))
        self._forget_other_boundaries()
        hidden = self._embedded(plan, batch) if self._embed is not None else self._given(plan, batch, hidden)
        watch, prepared = PartWatch(self._runtime, self._store), perf_counter()
        hidden = yield from self._forward(hidden, batch, self.layers)
        logits = self.logits(hidden, batch.picked) if self._last and len(batch.picked) else None
        computed = perf_counter()
        self._counts.count(len(batch.picked) == batch.rows, watch.parts(computed - prepared))
        if not self._last:
            seconds = (prepared - began, computed - prepared, 0.0)
            return StageOutput(self._runtime.to_host(hidden), [], seconds, degraded=_degraded(plan, batch))
        sampled = [] if logits is None else self._sample(batch, logits)
        examined = examine(self, hidden, plan.chunks, self._spec.vocabulary)
        seconds = (prepared - began, computed - prepared, perf_counter() - computed)
        return StageOutput(None, sampled, seconds, examined=examined, degraded=_degraded(plan, batch))

    def logits(self, hidden: Activations, picked: Ints) -> Floats:
        """[len(picked), vocabulary] of some rows. Only on the last stage."""
        return self._runtime.logits(hidden, picked, self._store)

    def normed(self, hidden: Activations) -> Floats:
        """The final norm alone. Only on the last stage."""
        return self._runtime.normed(hidden, self._store)

    def _embedded(self, plan: StepPlan, batch: StageBatch) -> Floats:
        if self._embed is None:
            raise RemoteProtocolError(f"step {plan.step} begins with tokens, but the model's first layer is not here")
        if batch.tokens.min() < 0 or batch.tokens.max() >= self._spec.vocabulary:
            raise RemoteProtocolError(f"step {plan.step} has a token outside the vocabulary of {self._spec.vocabulary}")
        rows = np.ascontiguousarray(self._embed.pick(batch.tokens.astype(np.int64)), np.float32)
        return rows if self._spec.embedding_scale == 1 else rows * np.float32(self._spec.embedding_scale)

    def _given(self, plan: StepPlan, batch: StageBatch, hidden: Floats | None) -> Floats:
        if hidden is None or hidden.shape != (batch.rows, self._spec.hidden):
            raise RemoteProtocolError(f"step {plan.step} came without activations for its {batch.rows} rows")
        hidden = np.ascontiguousarray(hidden, np.float32)
        return hidden if hidden.flags.writeable else hidden.copy()

    def _forward(self, hidden: Activations, batch: StageBatch, layers: range) -> Program[Activations]:
        """Runs some layers. The output of the stage's last layer goes into the journal."""
        hidden = yield from self._runtime.program(hidden, batch, self._angles(batch), layers, self._store)
        if layers.stop == self.layers.stop and (journal := self._journals.get(layers.stop)) is not None:
            journal.write(batch.slots, self._runtime.to_host(hidden))
        return hidden

    def _refill(self, plan: StepPlan, batch: StageBatch, hidden: Floats | None, began: float) -> Program[StageOutput]:
        mine, out, missing = self.layers, None, np.zeros(batch.rows, np.bool_)
        watch, computing = PartWatch(self._runtime, self._store), 0.0
        for first, end in plan.spans:
            # A span that begins where this stage ends is not skipped: its input is replayed from the journal here and sent on.
            if end <= mine.start or first > mine.stop:
                continue
            if first == 0 and mine.start == 0:
                x = self._embedded(plan, batch)
            elif first <= mine.start:
                x = self._given(plan, batch, hidden)
            else:
                x, known = self._replay(first, batch)
                missing |= ~known
            begins = max(first, mine.start)
            at = perf_counter()
            if begins < min(end, mine.stop):
                x = yield from self._forward(x, batch, range(begins, min(end, mine.stop)))
            computing += perf_counter() - at
            if end > mine.stop:
                out = self._runtime.to_host(x)
        unknown = [i for i in range(len(batch.starts) - 1) if missing[batch.starts[i] : batch.starts[i + 1]].any()]
        self._counts.count(False, watch.parts(computing))
        seconds = (perf_counter() - began - computing, computing, 0.0)
        return StageOutput(out, [], seconds, tuple(plan.chunks[i].sequence for i in unknown), _degraded(plan, batch))

    def _replay(self, boundary: int, batch: StageBatch) -> tuple[Floats, NDArray[np.bool_]]:
        if (journal := self._journals.get(boundary)) is None:
            return np.zeros((batch.rows, self._spec.hidden), np.float32), np.zeros(batch.rows, np.bool_)
        return journal.read(batch.slots)

    def _forget_other_boundaries(self) -> None:
        """Ends the journals of boundaries where this stage no longer ends: from here on they lack what is computed."""
        for boundary in [b for b in self._journals if b != self.layers.stop]:
            self._journals.pop(boundary).close()

    def _sample(self, batch: StageBatch, logits: Floats) -> list[Sampled]:
        positions, tokens = self._positions(batch)[batch.picked].tolist(), batch.tokens[batch.picked].tolist()
        out: list[Sampled] = []
        for sequence, rows in groupby(range(len(batch.picked)), batch.sequences.__getitem__):
            first, *drafts = rows
            out += self._sampler.run(sequence, positions[first], [tokens[row] for row in drafts], logits[first : first + 1 + len(drafts)])
        self._sampler.settle()
        return out

    def _positions(self, batch: StageBatch) -> Ints:
        """The position of every row."""
        if batch.rows == len(batch.positions):  # one row each, as in all steps that only decode
            return batch.positions
        lengths = np.diff(batch.starts)
        return np.repeat(batch.positions - batch.starts[:-1], lengths) + np.arange(batch.rows, dtype=np.int32)

    def _angles(self, batch: StageBatch) -> list[Angles]:
        positions = self._positions(batch)[:, None].astype(np.float32)
        turned = [(positions * inverse, np.float32(scale)) for inverse, scale in self._frequencies]
        return [(np.cos(angles) * scale, np.sin(angles) * scale) for angles, scale in turned]


def _degraded(plan: StepPlan, batch: StageBatch) -> tuple[tuple[int, int], ...]:
    """See StageOutput."""
    if not batch.degraded:
        return ()
    rows = [sum(row in batch.degraded for row in range(begin, end)) for begin, end in pairwise(batch.starts.tolist())]
    return tuple((chunk.sequence, count) for chunk, count in zip(plan.chunks, rows, strict=True) if count)
