"""Random logits, and which tokens a grammar lets come."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shoal.executor.constraint import Constraint

WIDTH = 260  # more logits than tokens


def row(seed: int, width: int = WIDTH) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, width).astype(np.float32)


def mask(place: Constraint, width: int = WIDTH) -> set[int]:
    """Which tokens may come."""
    allowed = place.allowed()
    assert allowed is not None
    listed = set(allowed.tokens.tolist())
    return set(range(width)) - listed if allowed.but else listed
