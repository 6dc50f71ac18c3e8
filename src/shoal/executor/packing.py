"""Brings stored matrices into the kernels' layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from shoal.config import Precision
from shoal.errors import CorruptModel
from shoal.executor.base import Floats
from shoal.executor.precision import ROUNDED, executed, kept
from shoal.models.matrix import StoredMatrix
from shoal.models.weights import Weights
from shoal.native import kernels

if TYPE_CHECKING:
    from shoal.native import Matrix


def pack(stored: StoredMatrix, precision: Precision, head: bool = False) -> Matrix:
    """A matrix in the kernels' layout, straight from the mapped file if the format allows it."""
    module = kernels()
    assert module is not None, "only the native runtime packs"
    target = executed(stored.format, stored.k, precision, head)
    if kept(stored.format, target) or (stored.format in ROUNDED and target != "f32"):
        return module.pack(stored.format, target, stored.rows, stored.k, stored.order)
    rows = stored.floats().view(np.uint8).reshape(stored.n, -1)
    return module.pack("f32", target, rows, stored.k, None)


def required(weights: Weights, name: str) -> Floats:
    """A vector that the model must have."""
    vector = weights.vector(name)
    if vector is None:
        raise CorruptModel("the model", f"no tensor for {name}")
    return vector
