"""Layers run as ONNX segments, with the paged attention between them in the kernels (or NumPy, if they are missing)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shoal.config import Precision
from shoal.executor.base import Angles, Floats, Ints, StageBatch
from shoal.executor.native_layers import required
from shoal.executor.onnx_runtimes import Segment, SegmentRuntime
from shoal.executor.segments import segments
from shoal.models.spec import ModelSpec
from shoal.models.weights import Weights
from shoal.native import kernels, reference


class _Attention:
    """Rotation, append and grouped-query attention of one layer's rows."""

    def __init__(self, spec: ModelSpec, threads: int, isa: str) -> None:
        self._eps, self._kind = spec.eps, spec.common.attention
        self._scale = self._kind.head_dim**-0.5
        module = kernels()
        arguments = (self._kind.q_heads, self._kind.kv_heads, self._kind.head_dim, spec.eps, self._scale, threads, isa)
        self._native = None if module is None else module.Attention(*arguments)

    def run(
        self,
        qkv: Floats,
        batch: StageBatch,
        angles: Angles,
        pool: NDArray[np.uint8],
        bf16: bool,
        window: int,
        norms: tuple[Floats | None, Floats | None],
    ) -> Floats:
        arguments = (qkv, batch.starts, batch.positions, batch.tables, angles.cos, angles.sin, pool, bf16, window, *norms)
        if self._native is None:
            heads = {"kv_heads": self._kind.kv_heads, "head_dim": self._kind.head_dim}
            return reference.attend(*arguments, **heads, eps=self._eps, scale=self._scale)
        out = np.empty((len(qkv), self._kind.q_width), np.float32)
        self._native.run(*arguments, out)
        return out


class OnnxLayers:
    def __init__(
        self, weights: Weights, layers: range, last: bool, *, runtime: SegmentRuntime, precision: Precision, threads: int, isa: str = ""
    ) -> None:
        self._runtime = runtime
        self._spec = weights.spec
        self._layers = layers
        self._attention = _Attention(weights.spec, threads, isa)
        self._segments: dict[str, Segment] = {}
        self._bytes = 0
        for name, model in segments(weights, layers, last, precision):
            self._bytes += sum(len(weight.raw_data) for weight in model.graph.initializer)
            self._segments[name] = runtime.compile(model)
            weights.forget()
        self._norms = {
            i: (weights.vector(f"layers.{i}.q_norm"), weights.vector(f"layers.{i}.k_norm"))
            if weights.spec.layers[i].attention.qk_norm
            else (None, None)
            for i in layers
        }
        if last:
            self._norm = required(weights, "norm")

    @property
    def runtime(self) -> str:
        return self._runtime.name

    @property
    def nbytes(self) -> int:
        return self._bytes

    def forward(self, hidden: Floats, batch: StageBatch, angles: Angles, pools: list[NDArray[np.uint8]], bf16: bool) -> Floats:
        (qkv,) = self._segments["entry"].run(residual=hidden)
        for i, layer in enumerate(self._layers):
            attended = self._attention.run(
                qkv, batch, angles, pools[i], bf16, self._spec.layers[layer].attention.window, self._norms[layer]
            )
            hidden, *rest = self._segments[f"after {layer}"].run(attended=attended, residual=hidden)
            qkv = rest[0] if rest else qkv
        return hidden

    def trim(self, first: int, count: int) -> bool:
        return False  # the segments before the first layer and after the last are compiled for the whole range

    def logits(self, hidden: Floats, picked: Ints) -> Floats:
        return self._segments["head"].run(residual=np.ascontiguousarray(hidden[picked]))[0]

    def normed(self, hidden: Floats) -> Floats:
        return reference.rms_norm(hidden, self._norm, self._spec.eps)
