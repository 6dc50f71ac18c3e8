"""Experts that are easy to follow: each multiplies rows with its number."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shoal.executor.store import RowCounts
from shoal.wire.routed import Routed, Sums
from tests.support.routed_rows import said, values

BAD = 99
"""An expert that fails."""


def summed(routed: Routed) -> Sums:
    """What such experts make of rows."""
    factors = [sum(expert * weight * count for (expert, weight), count in row.items()) for row in said(routed)]
    return np.array(factors, np.float64)[:, None] * np.array(values(routed), np.float64)


class Abacus:
    """A bank of such experts that notes what it ran."""

    held: Mapping[int, frozenset[int]]
    expert_rows: dict[int, RowCounts]

    def __init__(self) -> None:
        self.held, self.expert_rows = {}, {}
        self.ran: list[int] = []
        """Rows of each call."""

    def run(self, routed: Routed) -> Sums:
        routed.check()
        self.ran.append(routed.rows)
        if BAD in routed.experts:
            raise RuntimeError("a bad expert")
        return summed(routed)
