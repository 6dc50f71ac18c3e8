"""A stage, loaded: embedding on the first, layers, sampler on the last."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from shoal.errors import RemoteProtocolError
from shoal.executor.base import Angles, Floats, Ints, LayersFactory, StageBatch, StageOutput
from shoal.executor.kv_pool import KvPool
from shoal.executor.sampler import Sampler
from shoal.executor.sequences import Sequences
from shoal.models.rope import frequencies
from shoal.models.weights import Weights
from shoal.scheduler.plan import Sampled, StepPlan


class StageExecutor:
    """Runs plans for the layers [layers.start, layers.stop); first and last follow from the model's number of layers."""

    def __init__(self, weights: Weights, layers: range, *, blocks: int, bf16: bool, make_layers: LayersFactory) -> None:
        spec = weights.spec
        self._spec = spec
        self._embed = weights.matrix("embed") if layers.start == 0 else None
        self._last = layers.stop == spec.layers
        self._layers = make_layers(weights, layers, self._last)
        self._pool = KvPool(spec, len(layers), blocks, bf16)
        self._sequences = Sequences(blocks)
        self._sampler = Sampler()
        self._inverse, self._scale = frequencies(spec.rope, spec.head_dim)

    @property
    def nbytes(self) -> int:
        return self._layers.nbytes

    @property
    def runtime(self) -> str:
        return self._layers.runtime

    def run(self, plan: StepPlan, hidden: Floats | None) -> StageOutput:
        """hidden: [rows, hidden] from the stage before; None on the first. Raises RemoteProtocolError for a plan that cannot be."""
        began = perf_counter()
        batch = self._sequences.apply(plan)
        self._pool.copy(plan.copies)
        for sequence in plan.closed:
            self._sampler.close(sequence)
        if self._last:
            for opened in plan.opened:
                self._sampler.open(opened)
        if batch is None:
            return StageOutput(None, [], (perf_counter() - began, 0.0, 0.0))
        if self._embed is not None:
            if batch.tokens.min() < 0 or batch.tokens.max() >= self._spec.vocabulary:
                raise RemoteProtocolError(f"step {plan.step} has a token outside the vocabulary of {self._spec.vocabulary}")
            hidden = self._embed.pick(batch.tokens.astype(np.int64))
        if hidden is None or hidden.shape != (batch.rows, self._spec.hidden):
            raise RemoteProtocolError(f"step {plan.step} came without activations for its {batch.rows} rows")
        hidden = np.ascontiguousarray(hidden, np.float32)
        if not hidden.flags.writeable:
            hidden = hidden.copy()
        prepared = perf_counter()
        hidden = self._layers.forward(hidden, batch, self._angles(batch), self._pool.memory, self._pool.bf16)
        if not self._last:
            return StageOutput(hidden, [], (prepared - began, perf_counter() - prepared, 0.0))
        logits = self._layers.logits(hidden, batch.picked) if len(batch.picked) else None
        computed = perf_counter()
        sampled = [] if logits is None else self._draw(batch, logits)
        return StageOutput(None, sampled, (prepared - began, computed - prepared, perf_counter() - computed))

    def _draw(self, batch: StageBatch, logits: Floats) -> list[Sampled]:
        positions = self._positions(batch)[batch.picked].tolist()
        return [self._sampler.sample(s, p, row) for s, p, row in zip(batch.sequences, positions, logits, strict=True)]

    def _positions(self, batch: StageBatch) -> Ints:
        """The position of every row."""
        lengths = np.diff(batch.starts)
        return np.repeat(batch.positions - batch.starts[:-1], lengths) + np.arange(batch.rows, dtype=np.int32)

    def _angles(self, batch: StageBatch) -> Angles:
        angles = self._positions(batch)[:, None].astype(np.float32) * self._inverse
        return Angles(np.cos(angles) * np.float32(self._scale), np.sin(angles) * np.float32(self._scale))

    def close(self) -> None:
        """Frees the weights and the pool."""
        del self._layers, self._pool
