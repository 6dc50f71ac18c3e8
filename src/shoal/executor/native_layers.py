"""Layers run by the compiled kernels: quantised products, attention and everything between, in one call per step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shoal.config import Precision
from shoal.errors import ConfigError, CorruptModel
from shoal.executor.base import Angles, Floats, Ints, StageBatch
from shoal.executor.precision import executed
from shoal.models.matrix import StoredMatrix
from shoal.models.weights import MATRICES, Weights
from shoal.native import kernels, missing, reference

if TYPE_CHECKING:
    from shoal.native import Matrix


def _module():  # its type is the module's, which has no name
    """The kernels. Raises ConfigError."""
    module = kernels()
    if module is None:
        raise ConfigError(f"the native runtime cannot be used here: {missing()}, or use --runtime onnxruntime")
    return module


def pack(stored: StoredMatrix, precision: Precision, head: bool = False, threads: int = 1) -> Matrix:
    """A matrix in the kernels' layout, straight from the mapped file. Raises CorruptModel for what cannot be packed."""
    module = _module()
    target = executed(stored.format, stored.k, precision, head)
    try:
        return module.pack(stored.format, target, stored.rows, stored.k, stored.order, threads)
    except ValueError as error:
        raise CorruptModel("the model", f"a matrix cannot be packed: {error}") from error


def required(weights: Weights, name: str) -> Floats:
    """A vector that the model must have."""
    vector = weights.vector(name)
    if vector is None:
        raise CorruptModel("the model", f"no tensor for {name}")
    return vector


class NativeLayers:
    def __init__(self, weights: Weights, layers: range, last: bool, *, precision: Precision, threads: int, isa: str = "") -> None:
        module = _module()
        spec, common = weights.spec, weights.spec.common
        sizes = (common.attention.q_heads, common.attention.kv_heads, common.attention.head_dim, common.feed_forward.width)
        try:
            self._stage = module.Stage(spec.hidden, *sizes, spec.eps, common.attention.head_dim**-0.5, threads, isa)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        for i in layers:
            name, attention = f"layers.{i}.", spec.layers[i].attention
            self._stage.add_layer(
                required(weights, name + "attention_norm"),
                required(weights, name + "mlp_norm"),
                required(weights, name + "q_norm") if attention.qk_norm else None,
                required(weights, name + "k_norm") if attention.qk_norm else None,
                [pack(weights.matrix(name + m), precision, threads=threads) for m in MATRICES],
                [weights.vector(f"{name}{m}.bias") for m in MATRICES],
                attention.window,
            )
            weights.forget()
        self._vocabulary, self._eps = spec.vocabulary, spec.eps
        if last:
            self._norm = required(weights, "norm")
            self._stage.set_head(self._norm, pack(weights.matrix("head"), precision, head=True, threads=threads))
            weights.forget()

    @property
    def runtime(self) -> str:
        return f"native/{self._stage.isa}"

    @property
    def nbytes(self) -> int:
        return int(self._stage.nbytes)

    def forward(self, hidden: Floats, batch: StageBatch, angles: Angles, pools: list[NDArray[np.uint8]], bf16: bool) -> Floats:
        self._stage.forward(hidden, batch.starts, batch.positions, batch.tables, angles.cos, angles.sin, pools, bf16)
        return hidden

    def trim(self, first: int, count: int) -> bool:
        self._stage.trim(first, first + count)
        return True

    def logits(self, hidden: Floats, picked: Ints) -> Floats:
        out = np.empty((len(picked), (self._vocabulary + 15) // 16 * 16), np.float32)
        self._stage.logits(hidden, picked, out)
        return out[:, : self._vocabulary]

    def normed(self, hidden: Floats) -> Floats:
        return reference.rms_norm(hidden, self._norm, self._eps)
