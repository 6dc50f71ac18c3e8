"""What a node tells the head about the rows that its experts computed, and how they came to be in memory: only what came since it last
told it. So the head has only to add, whatever moves, restarts or comes back."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

import numpy as np

from shoal.control import messages as control
from shoal.executor.store import RowCounts
from shoal.weights.expert_reads import ExpertReads

_INTERVAL = 5.0  # seconds: a report of a large model takes 10 kB


class ExpertReport:
    """About one model. Counts that it is given never fall."""

    def __init__(self) -> None:
        self._told: dict[int, RowCounts] = {}
        self._reads: ExpertReads = ExpertReads()
        self._next: float = -inf
        self._next_reads: float = -inf

    def due(self, rows: Mapping[int, RowCounts], now: float) -> list[control.ExpertRows]:
        """rows: by layer, since the model was made. Returns the new ones, at most once in 5 s; what is returned counts as told."""
        if now < self._next:
            return []
        new = {layer: counts - self._told[layer] if layer in self._told else counts for layer, counts in rows.items()}
        report = [control.ExpertRows(layer=layer, rows=counts.tolist()) for layer, counts in new.items() if np.any(counts)]
        if report:
            self._told, self._next = dict(rows), now + _INTERVAL
        return report

    def reads_due(self, reads: ExpertReads, now: float) -> list[control.ExpertReads]:
        """The same for reads: those since the model was made."""
        if now < self._next_reads or reads == self._reads:
            return []
        new = reads.since(self._reads)
        self._reads, self._next_reads = reads, now + _INTERVAL
        return [control.ExpertReads(**new._asdict())]

    def skip(self, rows: Mapping[int, RowCounts], reads: ExpertReads) -> None:
        """Counts these as told."""
        self._told, self._reads = dict(rows), reads
