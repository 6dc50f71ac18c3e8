"""A store of weights for a stage some of whose experts run on other machines."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

from shoal.executor.base import Floats, Leases, Wave, WeightBlock


class Elsewhere:
    """store: has everything else. experts: by layer, those that run elsewhere; may be replaced between steps."""

    def __init__(self, store: Leases, experts: Mapping[int, frozenset[int]]) -> None:
        self._store, self.experts = store, experts

    @property
    def nbytes(self) -> int:
        return self._store.nbytes

    def runs(self, layers: range) -> list[range]:
        out: list[range] = []
        for run in self._store.runs(layers):
            begin = run.start
            for layer in run:
                if self.experts.get(layer):
                    out += [range(begin, layer), range(layer, layer + 1)]
                    begin = layer + 1
            out.append(range(begin, run.stop))
        return [run for run in out if run]

    def apart(self, layer: int) -> bool:
        return bool(self.experts.get(layer)) or self._store.apart(layer)

    def elsewhere(self, layer: int) -> frozenset[int]:
        return self.experts.get(layer, frozenset())

    def lease(self, block: WeightBlock) -> Any:
        return self._store.lease(block)

    def release(self, layers: range) -> None:
        self._store.release(layers)

    def waves(self, layer: int, needed: Sequence[int], hidden: Floats) -> Generator[Wave]:
        if self._store.apart(layer):
            yield from self._store.waves(layer, needed, hidden)
        else:
            yield list(range(len(needed)))
