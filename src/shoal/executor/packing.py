"""Brings stored matrices into the kernels' layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.config import Precision
from shoal.errors import CorruptModel
from shoal.executor.base import Floats
from shoal.executor.precision import executed
from shoal.models.matrix import StoredMatrix
from shoal.models.weights import Weights
from shoal.native import kernels

if TYPE_CHECKING:
    from shoal.native import Matrix


def pack(stored: StoredMatrix, precision: Precision, head: bool = False, threads: int = 1) -> Matrix:
    """A matrix in the kernels' layout, straight from the mapped file. Raises CorruptModel for what cannot be packed."""
    module = kernels()
    assert module is not None, "only the native runtime packs"
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
