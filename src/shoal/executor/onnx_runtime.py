"""Layers run as ONNX segments, with the paged attention between them in the kernels (or NumPy, if they are missing)."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from shoal.config import KvType, Precision
from shoal.errors import ConfigError
from shoal.executor.base import Angles, BlockPart, Floats, Ints, Leases, Packed, Program, StageBatch, WeightBlock
from shoal.executor.kv_pool import ROUNDED, HostRuntime
from shoal.executor.native_blocks import grouped_query
from shoal.executor.onnx_runtimes import Segment, SegmentRuntime
from shoal.executor.onnx_support import check_expressible
from shoal.executor.output import finished
from shoal.executor.packing import required
from shoal.executor.segments import segments
from shoal.models.spec import GroupedQuery, ModelSpec, rotation
from shoal.models.weights import Weights
from shoal.native import kernels, missing, reference
from shoal.observed.computing import ComputeParts


@dataclass
class _Segments:
    """The segments of a block, and what else it needs."""

    made: dict[str, Segment]
    nbytes: int
    norms: tuple[Floats | None, Floats | None] = (None, None)
    """Of queries and keys."""


class OnnxRuntime(HostRuntime):
    """Raises UnsupportedModel for a model that the segments cannot express, ConfigError for keys and values that only the kernels can round."""

    def __init__(
        self, spec: ModelSpec, *, segments: SegmentRuntime, kv_type: KvType, precision: Precision, threads: int, isa: str = ""
    ) -> None:
        check_expressible(spec, segments.name)
        self._segments, self._precision, self._spec = segments, precision, spec
        super().__init__(spec, kv_type)
        self._attention = _Attention(spec, threads, isa)
        if kv_type in ROUNDED and not self._attention.compiled:
            raise ConfigError(f"--kv-type {kv_type} needs the compiled kernels: {missing()}, or use --kv-type bf16")
        self._spent = ComputeParts()

    @property
    def name(self) -> str:
        return self._segments.name

    @property
    def spent(self) -> ComputeParts:
        return self._spent

    def pack(self, weights: Weights, block: WeightBlock, without: Container[int] = ()) -> Packed:
        """without: is not asked for, because no model with experts runs here."""
        made: dict[str, Segment] = {}
        size = 0
        for name, model in segments(weights, block, self._precision):
            size += sum(len(weight.raw_data) for weight in model.graph.initializer)
            made[name] = self._segments.compile(model)
        if block.part is BlockPart.HEAD:
            return _Segments(made, size, (required(weights, "norm"), None))
        layer = f"layers.{block.layer}."
        attention = self._spec.layers[block.layer].attention
        normed = block.part is BlockPart.ATTENTION and isinstance(attention, GroupedQuery) and attention.qk_norm
        return _Segments(made, size, (weights.vector(f"{layer}q_norm"), weights.vector(f"{layer}k_norm")) if normed else (None, None))

    def program(self, hidden: Floats, batch: StageBatch, angles: list[Angles], layers: range, leases: Leases) -> Program[Floats]:
        yield from ()  # nothing is needed from elsewhere
        return self.forward(hidden, batch, angles, layers, leases)

    def forward(self, hidden: Floats, batch: StageBatch, angles: list[Angles], layers: range, leases: Leases) -> Floats:
        in_attention = in_feed_forward = 0.0
        for layer in layers:
            attention = leases.lease(WeightBlock(layer, BlockPart.ATTENTION))
            feed_forward = leases.lease(WeightBlock(layer, BlockPart.FEED_FORWARD))
            began = perf_counter()
            (qkv,) = attention.made["before"].run(residual=hidden)
            attended = self._attention.run(layer, qkv, batch, angles, self._pool.of(layer), self._pool.kv_type, attention.norms)
            (hidden,) = attention.made["after"].run(attended=attended, residual=hidden)
            attended_at = perf_counter()
            (hidden,) = feed_forward.made["mlp"].run(residual=hidden)
            in_attention, in_feed_forward = in_attention + attended_at - began, in_feed_forward + perf_counter() - attended_at
        self._spent += ComputeParts(attention=in_attention, feed_forward=in_feed_forward)
        return hidden

    def logits(self, hidden: Floats, picked: Ints, leases: Leases) -> Floats:
        began = perf_counter()
        head = leases.lease(WeightBlock(len(self._spec.layers), BlockPart.HEAD))
        out = finished(head.made["head"].run(residual=np.ascontiguousarray(hidden[picked]))[0], self._spec)
        self._spent += ComputeParts(head=perf_counter() - began)
        return out

    def normed(self, hidden: Floats, leases: Leases) -> Floats:
        head = leases.lease(WeightBlock(len(self._spec.layers), BlockPart.HEAD))
        return reference.rms_norm(hidden, head.norms[0], self._spec.eps)


class _Attention:
    """Rotation, append and grouped-query attention of one layer's rows."""

    def __init__(self, spec: ModelSpec, threads: int, isa: str) -> None:
        self._spec, self._rotations = spec, spec.rotations
        self._module = kernels()
        self._stage = None if self._module is None else self._module.Stage(16, threads, isa)

    @property
    def compiled(self) -> bool:
        return self._stage is not None

    def run(
        self,
        layer: int,
        qkv: Floats,
        batch: StageBatch,
        angles: list[Angles],
        pool: NDArray[np.uint8],
        kv_type: KvType,
        norms: tuple[Floats | None, Floats | None],
    ) -> Floats:
        kind = self._spec.layers[layer].attention
        assert isinstance(kind, GroupedQuery), "checked when the runtime was made"
        at = self._rotations.index(rotation(self._spec.layers[layer]))  # pyright: ignore[reportArgumentType]  # checked, too
        if self._module is None or self._stage is None:
            cos, sin = angles[at]
            return reference.attend(
                qkv, batch.starts, batch.positions, batch.tables, cos, sin, pool, kv_type, kind.window, *norms,
                kv_heads=kind.kv_heads, head_dim=kind.head_dim, eps=self._spec.eps, scale=kind.scaling,
            )  # fmt: skip
        made = [None if norm is None else self._module.Norm(norm, self._spec.eps) for norm in norms]
        block = self._module.GroupedQuery(
            self._module.Around(), None, None, None, None, q_norm=made[0], k_norm=made[1], **grouped_query(kind, at)
        )
        out = np.empty((len(qkv), kind.q_heads * kind.values), np.float32)
        self._stage.attend(block, qkv, batch.starts, batch.positions, batch.tables, angles, pool, kv_type, out)
        return out
