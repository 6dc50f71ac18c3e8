"""Layers run by the compiled kernels: all layers of a step in one call, where their weights are all here."""

from __future__ import annotations

from collections.abc import Container
from contextlib import closing
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from shoal.config import KvType, Precision
from shoal.errors import ConfigError, LocalProtocolError
from shoal.executor.base import (
    Angles,
    BlockPart,
    Collect,
    Floats,
    Ints,
    Leases,
    Packed,
    Program,
    Send,
    StageBatch,
    WeightBlock,
    here,
)
from shoal.executor.expert_split import RemoteLayer, work
from shoal.executor.kv_pool import HostRuntime
from shoal.executor.native_blocks import BlockMaker
from shoal.executor.output import finished
from shoal.executor.packing import StoredTensors
from shoal.models.spec import Experts as ExpertsSpec
from shoal.models.spec import ModelSpec
from shoal.models.weights import Weights
from shoal.native import kernels, missing
from shoal.observed.computing import ComputeParts
from shoal.wire.routed import Routed, RoutedHeader

if TYPE_CHECKING:
    from shoal.native import Experts


class NativeRuntime(HostRuntime):
    """Raises ConfigError."""

    def __init__(self, spec: ModelSpec, *, kv_type: KvType, precision: Precision, threads: int, isa: str = "") -> None:
        if (module := kernels()) is None:
            raise ConfigError(f"the native runtime cannot be used here: {missing()}, or use --runtime onnxruntime")
        self._module = module
        try:
            self._stage = module.Stage(spec.hidden, threads, isa)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        super().__init__(spec, kv_type)
        self._spec, self._precision, self._threads = spec, precision, threads
        self._waited = 0.0
        """Seconds, for workers."""

    @property
    def name(self) -> str:
        return f"native/{self._stage.isa}"

    @property
    def spent(self) -> ComputeParts:
        attention, feed_forward, experts, head = self._stage.spent
        return ComputeParts(attention, feed_forward, experts, self._waited, head)

    def pack(self, weights: Weights, block: WeightBlock, without: Container[int] = ()) -> Packed:
        """without: experts that run elsewhere."""
        tensors = StoredTensors(weights, self._precision, self._threads)
        return BlockMaker(self._module, self._spec, tensors, block.layer).block(block.part, without=without)

    def forward(self, hidden: Floats, batch: StageBatch, angles: list[Angles], layers: range, leases: Leases) -> Floats:
        return here(self.program(hidden, batch, angles, layers, leases))

    def program(self, hidden: Floats, batch: StageBatch, angles: list[Angles], layers: range, leases: Leases) -> Program[Floats]:
        for run in leases.runs(layers):
            try:
                yield from self._run(hidden, batch, angles, run, leases)
            finally:
                leases.release(run)
        return hidden

    def _run(self, hidden: Floats, batch: StageBatch, angles: list[Angles], run: range, leases: Leases) -> Program[None]:
        attention = [leases.lease(WeightBlock(layer, BlockPart.ATTENTION)) for layer in run]
        feed_forward = [leases.lease(WeightBlock(layer, BlockPart.FEED_FORWARD)) for layer in run]
        pools = [self._pool.of(layer) for layer in run]
        rows = (batch.starts, batch.positions, batch.tables, angles)
        if not leases.apart(run.start):
            self._stage.forward(hidden, *rows, attention, feed_forward, pools, self._pool.kv_type)
            return
        needed = self._stage.route(hidden, *rows, attention[0], feed_forward[0], pools[0], self._pool.kv_type)
        if (remote := leases.elsewhere(run.start)) is None:
            self._run_here(run.start, feed_forward[0], needed[:, 0].tolist(), list(range(len(needed))), hidden, leases)
        else:
            yield from self._run_divided(run.start, feed_forward[0], dict(needed.tolist()), hidden, leases, remote, batch.degraded)
        if self._stage.awaited:
            raise LocalProtocolError(f"{self._stage.awaited} experts of layer {run.start} did not come")

    def _run_here(self, layer: int, block: Experts, experts: list[int], places: list[int], hidden: Floats, leases: Leases) -> None:
        """places: of the experts among all that the step needs."""
        with closing(leases.waves(layer, experts, hidden)) as waves:
            for wave in waves:
                self._stage.compute(hidden, block, [places[at] for at in wave])

    def _run_divided(
        self,
        layer: int,
        block: Experts,
        rows: dict[int, int],
        hidden: Floats,
        leases: Leases,
        remote: RemoteLayer,
        degraded: set[int],
    ) -> Program[None]:
        """rows: of each expert that is needed, by rising number. degraded: gets the rows that lack an expert."""
        place = {expert: at for at, expert in enumerate(rows)}

        def run(experts: list[int]) -> None:
            began = perf_counter()
            self._run_here(layer, block, experts, [place[expert] for expert in experts], hidden, leases)
            remote.split.here.took(perf_counter() - began, sum(work(rows[expert]) for expert in experts))

        sent_at = 0.0
        asked = remote.split.sent(rows, remote.only, remote.also)
        if asked:
            sent = [place[expert] for expert in asked]
            floats = self._precision is Precision.FP32
            of, entries, body = self._stage.dispatch(block, sent, floats)
            header = RoutedHeader(layer, len(of), hidden.shape[1], len(sent), entries, not floats)
            sending = perf_counter()
            yield Send(Routed(header, body), of, remote.also)
            sent_at = perf_counter()
            self._waited += sent_at - sending
        local = [expert for expert in rows if expert not in asked]
        kind = self._spec.layers[layer].feed_forward
        assert isinstance(kind, ExpertsSpec)
        last = [expert for expert in local if expert == kind.count] if remote.degrade and asked else []  # the shared one
        if first := [expert for expert in local if expert not in last]:
            run(first)
        if not asked:
            return
        late, waiting = set(asked), perf_counter()
        parts = yield Collect()
        self._waited += perf_counter() - waiting
        for part in parts:
            came = part.experts.tolist()
            self._stage.add(hidden, block, [place[expert] for expert in came], part.rows, part.sums)
            remote.split.there.took(part.seconds, sum(work(rows[expert]) for expert in came))
            late.difference_update(came)
        if taken_back := sorted(late & remote.also):
            remote.split.there.took(perf_counter() - sent_at, sum(work(rows[expert]) for expert in taken_back))
            run(taken_back)
        if (dropped := sorted(late - remote.also)) and remote.degrade:
            degraded.update(self._stage.drop(hidden, block, [place[expert] for expert in dropped]).tolist())
        if last:
            run(last)

    def logits(self, hidden: Floats, picked: Ints, leases: Leases) -> Floats:
        out = np.empty((len(picked), (self._spec.vocabulary + 15) // 16 * 16), np.float32)
        self._stage.logits(hidden, leases.lease(self._head).head, picked, out)
        leases.release(range(self._head.layer, self._head.layer + 1))
        return finished(out[:, : self._spec.vocabulary], self._spec)

    def normed(self, hidden: Floats, leases: Leases) -> Floats:
        normed = leases.lease(self._head).normed(hidden)
        leases.release(range(self._head.layer, self._head.layer + 1))
        return normed

    @property
    def _head(self) -> WeightBlock:
        return WeightBlock(len(self._spec.layers), BlockPart.HEAD)
