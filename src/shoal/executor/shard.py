"""What a node holds of a model, from epoch to epoch: layers, their keys and values, and journals.

A stage is a view of it. When the layers are redistributed, a node loads those it lacks beside those that run, and frees the
rest when the new route is entered. Keys and values stay if the head says that they are still good.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shoal.errors import LocalProtocolError
from shoal.executor.base import Layers, LayersFactory
from shoal.executor.constraint import Holder
from shoal.executor.journal import Journal, JournalCounters, JournalLimits
from shoal.executor.kv_pool import KvPool
from shoal.executor.stage import Slab, StageExecutor
from shoal.models.weights import Weights


@dataclass
class _Held:
    layers: range
    weights: Weights
    made: Layers


class Shard:
    """bf16: how keys and values are stored. grammars: which the last stage applies to answers. One thread may `load` while
    another runs a stage."""

    def __init__(
        self, make_layers: LayersFactory, bf16: bool, journals: JournalLimits | None = None, grammars: Holder | None = None
    ) -> None:
        self.counters = JournalCounters()
        self._grammars = grammars
        self._make, self._bf16 = make_layers, bf16
        self._limits = journals or JournalLimits()
        self._held: list[_Held] = []
        self._pool: KvPool | None = None
        self._journals: dict[int, Journal] = {}

    @property
    def layers(self) -> list[range]:
        """The loaded ranges of layers."""
        return sorted((held.layers for held in self._held), key=lambda layers: layers.start)

    @property
    def nbytes(self) -> int:
        return sum(held.made.nbytes for held in self._held)

    @property
    def journal_bytes(self) -> int:
        return sum(journal.bytes_in_memory for journal in self._journals.values())

    @property
    def largest_journal(self) -> int:
        """Bytes in memory. The limit is on each journal: during a change of route there are two, one of the old boundary and
        one of the new."""
        return max((journal.bytes_in_memory for journal in self._journals.values()), default=0)

    @property
    def runtime(self) -> str:
        return self._held[0].made.runtime if self._held else ""

    def missing(self, layers: range) -> list[range]:
        """Those of the layers that would have to be loaded."""
        out: list[range] = []
        at = layers.start
        for have in self.layers:
            if have.stop <= at or have.start >= layers.stop:
                continue
            if have.start > at:
                out.append(range(at, have.start))
            at = max(at, have.stop)
        return [*out, range(at, layers.stop)] if at < layers.stop else out

    def load(self, layers: range, weights: Weights) -> None:
        """Loads the layers that are missing. Raises ModelError, ConfigError."""
        held = [*self._held]
        for part in self.missing(layers):
            held.append(_Held(part, weights, self._make(weights, part, part.stop == len(weights.spec.layers))))
        self._held = held

    def enter(self, layers: range, keep: range, blocks: int) -> StageExecutor:
        """The stage of a new epoch: all of `layers` are loaded, and only the keys and values of `keep` are still good. Frees
        everything else.

        Raises LocalProtocolError if something that it needs is not here.
        """
        if self.missing(layers):
            raise LocalProtocolError(f"layers {self.missing(layers)} are not loaded")
        if self._pool is not None and (self._pool.blocks != blocks or not len(keep)):
            self._forget()
        if self._pool is None:
            if len(keep):
                raise LocalProtocolError(f"keys and values of layers {keep.start} to {keep.stop - 1} are not here")
            self._pool = KvPool(self._held[0].weights.spec, blocks, self._bf16)
        self._pool.keep(keep)
        self._held = [held for held in self._held if self._fit(held, layers)]
        for edge in (keep.start, keep.stop):  # the range to refill must begin and end with a slab
            self._held = [part for held in self._held for part in self._split(held, edge)]
        if lost := self.missing(layers):  # layers of a range that its runtime could not cut
            raise LocalProtocolError(f"layers {lost} are no longer loaded")
        spec = self._held[0].weights.spec
        # A boundary's rows are good while the layer before it is: they are that layer's output.
        for boundary in [b for b in self._journals if b - 1 not in keep]:
            self._journals.pop(boundary).close()
        last = layers.stop == len(spec.layers)
        if not last and layers.stop not in self._journals and self._limits.memory + self._limits.disk:
            self._journals[layers.stop] = Journal(self._limits, blocks, spec.hidden, self.counters)
        slabs = [Slab(held.layers, held.made, self._pool.of(held.layers)) for held in self._sorted()]
        first = next((held.weights for held in self._held if held.layers.start == 0), None)
        return StageExecutor(spec, slabs, self._pool, self._journals, first if layers.start == 0 else None, self._grammars)

    def _sorted(self) -> Iterator[_Held]:
        return iter(sorted(self._held, key=lambda held: held.layers.start))

    def _fit(self, held: _Held, layers: range) -> bool:
        """Cuts a range down to its part in `layers`. Returns whether anything is left."""
        inside = range(max(held.layers.start, layers.start), min(held.layers.stop, layers.stop))
        if not len(inside):
            return False
        if inside != held.layers:
            if not held.made.trim(inside.start - held.layers.start, len(inside)):
                held.made = self._make(held.weights, inside, inside.stop == len(held.weights.spec.layers))
            held.layers = inside
        return True

    def _split(self, held: _Held, edge: int) -> list[_Held]:
        """Splits a range in two if it spans an edge."""
        parts = [range(held.layers.start, edge), range(edge, held.layers.stop)]
        if not all(parts):
            return [held]
        return [_Held(part, held.weights, self._make(held.weights, part, part.stop == len(held.weights.spec.layers))) for part in parts]

    def _forget(self) -> None:
        self._pool = None
        for journal in self._journals.values():
            journal.close()
        self._journals = {}

    def shed(self, wanted: list[range]) -> None:
        """Frees loaded ranges that contain none of the wanted layers. No stage may run them."""
        self._held = [h for h in self._held if any(h.layers.start < w.stop and w.start < h.layers.stop for w in wanted)]

    def rest(self) -> None:
        """Frees keys, values and journals; the weights stay for a later route."""
        self._forget()

    def close(self) -> None:
        """Frees everything."""
        self._forget()
        self._held = []
