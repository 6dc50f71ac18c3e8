"""What it costs the processor that a layer's experts are not just there: choices and calls between Python and the kernels for every layer,
and for every read what it takes to order it and to put what came in its place."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import numpy as np

from shoal.config import KvType, Precision
from shoal.executor.base import Angles, Floats, StageBatch
from shoal.executor.native_runtime import NativeRuntime
from shoal.executor.packed_layers import PackedLayers
from shoal.executor.streamed_store import StreamedStore
from shoal.models.spec import Experts, GroupedQuery, LayerSpec, ModelSpec, Routing
from shoal.native import kernels

if TYPE_CHECKING:
    from shoal.native import Matrix

_HIDDEN, _WIDTH, _EXPERTS, _CHOSEN, _LAYERS = 64, 32, 16, 4, 8
_VOCABULARY = 64


@dataclass(frozen=True)
class StreamingOverhead:
    layer: float
    """Seconds of a step for each layer with experts."""
    read: float
    """Seconds of the processor for each read, besides checking what came."""


class _Random:
    """The tensors of a model that is too small to cost anything."""

    def __init__(self, spec: ModelSpec) -> None:
        self._rng, self._module = np.random.default_rng(0), kernels()
        self._shapes = {"head": (spec.vocabulary, spec.hidden)}
        for i in range(len(spec.layers)):
            self._shapes.update((f"layers.{i}.{name}", shape) for name, shape in spec.matrices(i).items())

    def matrix(self, name: str) -> Matrix:
        assert self._module is not None
        values = self._rng.standard_normal(self._shapes[name]).astype(np.float32)
        return self._module.pack("f32", "f32" if name.endswith("router") else "q8", values.view(np.uint8), values.shape[1])

    def vector(self, name: str) -> Floats | None:
        return None if name.endswith("bias") else np.ones(_HIDDEN, np.float32)


def _spec() -> ModelSpec:
    attention = GroupedQuery(q_heads=1, kv_heads=1, head_dim=_HIDDEN, rope=None)
    layer = LayerSpec(attention, Experts(_EXPERTS, _WIDTH, Routing(_CHOSEN)))
    return ModelSpec("measured", _HIDDEN, _VOCABULARY, 1e-5, 64, tied=False, layers=(layer,) * _LAYERS)


def streaming_overhead(folder: Path, threads: int, isa: str = "", seconds: float = 1.0) -> StreamingOverhead:
    """Needs the kernels. folder: on the disk that weights are read from; nothing stays there. Raises OSError, WeightsUnreadable."""
    with tempfile.TemporaryDirectory(prefix="measure-", dir=folder) as made:
        spec = _spec()
        packed = PackedLayers(Path(made), spec, _Random(spec))
        packed.make([*range(_LAYERS), _LAYERS])
        sizes = packed.sizes(range(_LAYERS))
        all_here = _steps(packed, spec, sizes.total, threads, isa, seconds / 2)
        held = _steps(packed, spec, sizes.total, 1, isa, seconds / 4)
        missed = _steps(packed, spec, sizes.total - (_LAYERS * _EXPERTS * 3 // 4) * sizes.slot, 1, isa, seconds / 4)
    read = (missed.processor - held.processor) / max(missed.reads - held.reads, 1e-9)
    return StreamingOverhead(all_here.seconds / _LAYERS, max(read, 0.0))


@dataclass(frozen=True)
class _Step:
    seconds: float
    processor: float
    reads: float


def _steps(packed: PackedLayers, spec: ModelSpec, memory: int, threads: int, isa: str, seconds: float) -> _Step:
    """The fastest of some steps, and what they take of the processor and read, on average."""
    runtime = NativeRuntime(spec, kv_type=KvType.BF16, precision=Precision.AUTO, threads=threads, isa=isa)
    runtime.open(1)
    store = StreamedStore(packed, range(_LAYERS), memory)
    try:
        store.fill()
        starts, positions, tables = np.array([0, 1], np.int32), np.zeros(1, np.int32), np.zeros((1, 1), np.int32)
        batch = StageBatch(starts, positions, tables, np.zeros(1, np.int32), np.zeros(0, np.int32), ())
        rng = np.random.default_rng(1)

        def step() -> None:
            hidden: Any = rng.standard_normal((1, _HIDDEN)).astype(np.float32)
            angles: list[Angles] = []
            runtime.forward(hidden, batch, angles, range(_LAYERS), store)

        for _ in range(_EXPERTS):
            step()
        times: list[float] = []
        before, computed, end = store.tally.misses, process_time(), perf_counter() + seconds
        while perf_counter() < end:
            began = perf_counter()
            step()
            times.append(perf_counter() - began)
        return _Step(min(times), (process_time() - computed) / len(times), (store.tally.misses - before) / len(times))
    finally:
        store.close()
