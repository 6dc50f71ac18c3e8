"""A store of weights for a stage some of whose experts run on other machines."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from shoal.executor.base import Floats, Leases, Wave, WeightBlock
from shoal.executor.expert_split import RemoteExperts, RemoteLayer


class Elsewhere:
    """store: has everything else. remote: may be replaced between steps."""

    def __init__(self, store: Leases, remote: RemoteExperts) -> None:
        self._store, self.remote = store, remote

    @property
    def nbytes(self) -> int:
        return self._store.nbytes

    @property
    def waited(self) -> float:
        return self._store.waited

    def runs(self, layers: range) -> list[range]:
        out: list[range] = []
        for run in self._store.runs(layers):
            begin = run.start
            for layer in run:
                if self.remote.of(layer):
                    out += [range(begin, layer), range(layer, layer + 1)]
                    begin = layer + 1
            out.append(range(begin, run.stop))
        return [run for run in out if run]

    def apart(self, layer: int) -> bool:
        return self.remote.of(layer) is not None or self._store.apart(layer)

    def elsewhere(self, layer: int) -> RemoteLayer | None:
        return self.remote.of(layer)

    def lease(self, block: WeightBlock) -> Any:
        return self._store.lease(block)

    def release(self, layers: range) -> None:
        self._store.release(layers)

    def waves(self, layer: int, needed: Sequence[int], hidden: Floats) -> Generator[Wave]:
        if self._store.apart(layer):
            yield from self._store.waves(layer, needed, hidden)
        else:
            yield list(range(len(needed)))
