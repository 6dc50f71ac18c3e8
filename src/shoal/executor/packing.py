"""Brings stored matrices into the kernels' layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from shoal.config import Precision
from shoal.errors import CorruptModel
from shoal.executor.base import Floats
from shoal.executor.precision import UNROUNDED, executed
from shoal.models.matrix import StoredMatrix
from shoal.models.weights import Weights
from shoal.native import kernels
from shoal.weights.packed_file import Contents, PackedUnit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from shoal.executor.native_blocks import Tensors
    from shoal.native import Matrix

_FORGOTTEN = 64 << 20  # bytes: what is read of a mapped file is in memory until then


def pack(stored: StoredMatrix, precision: Precision, head: bool = False, threads: int = 1) -> Matrix:
    """A matrix in the kernels' layout, straight from the mapped file. Raises CorruptModel for what cannot be packed."""
    module = kernels()
    assert module is not None, "only the native runtime packs"
    target = executed(stored.format, stored.k, precision, head)
    try:
        return module.pack(stored.format, target, stored.rows, stored.k, stored.order, threads)
    except ValueError as error:
        raise CorruptModel("the model", f"a matrix cannot be packed: {error}") from error


class Vectors(Protocol):
    def vector(self, name: str) -> Floats | None: ...


def required(tensors: Vectors, name: str) -> Floats:
    """A vector that the model must have."""
    vector = tensors.vector(name)
    if vector is None:
        raise CorruptModel("the model", f"no tensor for {name}")
    return vector


class StoredTensors:
    """A model's tensors, packed as they are asked for."""

    def __init__(self, weights: Weights, precision: Precision, threads: int = 1) -> None:
        self._weights, self._precision, self._threads = weights, precision, threads
        self._read = 0

    def matrix(self, name: str) -> Matrix:
        """Raises CorruptModel, UnsupportedModel."""
        precision = Precision.FP32 if name.endswith(UNROUNDED) else self._precision
        made = pack(self._weights.matrix(name), precision, head=name == "head", threads=self._threads)
        self._read += made.nbytes
        if self._read > _FORGOTTEN:
            self._weights.forget()
            self._read = 0
        return made

    def vector(self, name: str) -> Floats | None:
        """Raises CorruptModel, UnsupportedModel."""
        return self._weights.vector(name)


class RecordedTensors:
    """Passes on what another source has, and keeps it: what a block took is what its unit has to hold."""

    def __init__(self, source: Tensors) -> None:
        self._source = source
        self._matrices: dict[str, tuple[tuple[Any, ...], NDArray[np.uint8]]] = {}
        self._vectors: dict[str, Floats] = {}

    def matrix(self, name: str) -> Matrix:
        made = self._source.matrix(name)
        self._matrices[name] = made.form, made.data
        return made

    def vector(self, name: str) -> Floats | None:
        if (found := self._source.vector(name)) is not None:
            self._vectors[name] = found
        return found

    def taken(self) -> Contents:
        return Contents(self._matrices, self._vectors)


class UnitTensors:
    """What the memory of a unit holds; matrices lie in that memory and keep it."""

    def __init__(self, unit: PackedUnit, memory: NDArray[np.uint8]) -> None:
        self._unit, self._memory = unit, memory

    def matrix(self, name: str) -> Matrix:
        module = kernels()
        assert module is not None, "only the native runtime packs"
        return module.Matrix(self._unit.matrices[name].form, self._unit.matrix(self._memory, name))

    def vector(self, name: str) -> Floats | None:
        return self._unit.vector(self._memory, name)
