"""Layers run by the compiled kernels: all layers of a step in one call, where their weights are all here."""

from __future__ import annotations

from collections.abc import Container
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from shoal.config import Precision
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
from shoal.executor.kv_pool import HostRuntime
from shoal.executor.native_blocks import BlockMaker
from shoal.executor.output import finished
from shoal.executor.packing import StoredTensors
from shoal.models.spec import ModelSpec
from shoal.models.weights import Weights
from shoal.native import kernels, missing
from shoal.wire.routed import Routed

if TYPE_CHECKING:
    from shoal.native import Experts


class NativeRuntime(HostRuntime):
    """bf16: how keys and values are stored. Raises ConfigError."""

    def __init__(self, spec: ModelSpec, *, bf16: bool, precision: Precision, threads: int, isa: str = "") -> None:
        if (module := kernels()) is None:
            raise ConfigError(f"the native runtime cannot be used here: {missing()}, or use --runtime onnxruntime")
        self._module = module
        try:
            self._stage = module.Stage(spec.hidden, threads, isa)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        super().__init__(spec, bf16)
        self._spec, self._precision, self._threads = spec, precision, threads

    @property
    def name(self) -> str:
        return f"native/{self._stage.isa}"

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
            self._stage.forward(hidden, *rows, attention, feed_forward, pools, self._pool.bf16)
            return
        needed = self._stage.route(hidden, *rows, attention[0], feed_forward[0], pools[0], self._pool.bf16)
        yield from self._experts(run.start, feed_forward[0], needed[:, 0].tolist(), hidden, leases)
        if self._stage.awaited:
            raise LocalProtocolError(f"{self._stage.awaited} experts of layer {run.start} did not come")

    def _experts(self, layer: int, block: Experts, needed: list[int], hidden: Floats, leases: Leases) -> Program[None]:
        """needed: by rising number."""
        away = leases.elsewhere(layer)
        place = {expert: at for at, expert in enumerate(needed)}
        sent = [at for expert, at in place.items() if expert in away]
        if sent:
            rows, experts, offsets, index, weights, q, scale, x = self._stage.dispatch(block, sent, self._precision is Precision.FP32)
            yield Send(Routed(layer, experts, offsets, index, weights, scale, q, x), rows)
        if local := [at for at in place.values() if needed[at] not in away] if away else list(place.values()):
            with closing(leases.waves(layer, [needed[at] for at in local], hidden)) as waves:
                for wave in waves:
                    self._stage.compute(hidden, block, [local[at] for at in wave] if away else wave)
        if sent:
            for part in (yield Collect()):
                self._stage.add(hidden, block, [place[expert] for expert in part.experts.tolist()], part.rows, part.sums)

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
