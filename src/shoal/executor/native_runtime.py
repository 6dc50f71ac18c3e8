"""Layers run by the compiled kernels: all layers of a step in one call, where their weights are all here."""

from __future__ import annotations

from contextlib import closing

import numpy as np

from shoal.config import Precision
from shoal.errors import ConfigError, LocalProtocolError
from shoal.executor.base import Angles, BlockPart, Floats, Ints, Leases, Packed, StageBatch, WeightBlock
from shoal.executor.kv_pool import HostRuntime
from shoal.executor.native_blocks import BlockMaker
from shoal.executor.output import finished
from shoal.executor.packing import StoredTensors
from shoal.models.spec import ModelSpec
from shoal.models.weights import Weights
from shoal.native import kernels, missing


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

    def pack(self, weights: Weights, block: WeightBlock) -> Packed:
        tensors = StoredTensors(weights, self._precision, self._threads)
        return BlockMaker(self._module, self._spec, tensors, block.layer).block(block.part)

    def forward(self, hidden: Floats, batch: StageBatch, angles: list[Angles], layers: range, leases: Leases) -> Floats:
        for run in leases.runs(layers):
            try:
                self._run(hidden, batch, angles, run, leases)
            finally:
                leases.release(run)
        return hidden

    def _run(self, hidden: Floats, batch: StageBatch, angles: list[Angles], run: range, leases: Leases) -> None:
        attention = [leases.lease(WeightBlock(layer, BlockPart.ATTENTION)) for layer in run]
        feed_forward = [leases.lease(WeightBlock(layer, BlockPart.FEED_FORWARD)) for layer in run]
        pools = [self._pool.of(layer) for layer in run]
        rows = (batch.starts, batch.positions, batch.tables, angles)
        if leases.apart(run.start):
            needed = self._stage.route(hidden, *rows, attention[0], feed_forward[0], pools[0], self._pool.bf16)
            with closing(leases.waves(run.start, needed[:, 0].tolist(), hidden)) as waves:
                for places in waves:
                    self._stage.compute(hidden, feed_forward[0], places)
            if self._stage.awaited:
                raise LocalProtocolError(f"{self._stage.awaited} experts of layer {run.start} did not come")
        else:
            self._stage.forward(hidden, *rows, attention, feed_forward, pools, self._pool.bf16)

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
