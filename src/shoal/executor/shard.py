"""What a node holds of a model, from epoch to epoch: layers, their keys and values, and journals.

A stage is a view of it. When the layers are redistributed, a node loads those it lacks beside those that run, and frees the
rest when the new route is entered. Keys and values stay if the head says that they are still good.
"""

from __future__ import annotations

from shoal.errors import LocalProtocolError
from shoal.executor.base import Packed, Runtime, RuntimeFactory, WeightBlock
from shoal.executor.constraint import Holder
from shoal.executor.journal import Journal, JournalCounters, JournalLimits
from shoal.executor.stage import StageExecutor
from shoal.executor.store import RowCounts, WeightStore, blocks_of
from shoal.models.weights import Weights


class Shard:
    """context: the most tokens of a sequence. grammars: which the last stage applies to answers. One thread may `load` while another runs
    a stage."""

    def __init__(
        self, make_runtime: RuntimeFactory, journals: JournalLimits | None = None, grammars: Holder | None = None, context: int = 0
    ) -> None:
        self.counters = JournalCounters()
        self._grammars, self._context = grammars, context
        self._make = make_runtime
        self._limits = journals or JournalLimits()
        self._runtime: Runtime | None = None
        self._store = WeightStore()
        self._weights: dict[int, Weights] = {}
        """What each loaded layer was loaded from."""
        self._blocks = 0
        """KV blocks of each layer; 0: there are no keys and values."""
        self._journals: dict[int, Journal] = {}

    @property
    def layers(self) -> list[range]:
        """The loaded ranges of layers."""
        out: list[range] = []
        for layer in sorted(self._weights):
            if out and out[-1].stop == layer:
                out[-1] = range(out[-1].start, layer + 1)
            else:
                out.append(range(layer, layer + 1))
        return out

    @property
    def nbytes(self) -> int:
        return self._store.nbytes

    @property
    def expert_rows(self) -> dict[int, RowCounts]:
        """By layer, for layers with experts that are or were here, since the shard was made; empty if the runtime does not count. Any
        thread may read it while another runs a stage: see WeightStore."""
        return self._store.expert_rows

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
        return self._runtime.name if self._runtime is not None else ""

    def missing(self, layers: range) -> list[range]:
        """Those of the layers that would have to be loaded."""
        out: list[range] = []
        for layer in layers:
            if layer in self._weights:
                continue
            if out and out[-1].stop == layer:
                out[-1] = range(out[-1].start, layer + 1)
            else:
                out.append(range(layer, layer + 1))
        return out

    def load(self, layers: range, weights: Weights) -> None:
        """Loads the layers that are missing, all or none. Raises ModelError, ConfigError."""
        for part in self.missing(layers):
            weights.check(part)
        runtime = self._runtime or self._make(weights, layers.start)
        absent = [layer for part in self.missing(layers) for layer in part]
        packed: dict[WeightBlock, Packed] = {}
        for part in self.missing(layers):
            for block in blocks_of(part, len(weights.spec.layers)):
                packed[block] = runtime.pack(weights, block)
                weights.forget()
        for block, made in packed.items():
            self._store.put(block, made)
        self._runtime = runtime
        self._weights = {**self._weights, **dict.fromkeys(absent, weights)}

    def enter(self, layers: range, keep: range, blocks: int) -> StageExecutor:
        """The stage of a new epoch: all of `layers` are loaded, and only the keys and values of `keep` are still good. Frees
        everything else.

        Raises LocalProtocolError if something that it needs is not here.
        """
        if (lost := self.missing(layers)) or self._runtime is None:
            raise LocalProtocolError(f"layers {lost} are not loaded")
        if self._blocks and (self._blocks != blocks or not len(keep)):
            self._forget()
        if not self._blocks:
            if len(keep):
                raise LocalProtocolError(f"keys and values of layers {keep.start} to {keep.stop - 1} are not here")
            self._blocks = blocks
            self._runtime.open(blocks)
        self._runtime.keep(keep)
        self._weights = {layer: weights for layer, weights in self._weights.items() if layer in layers}
        weights = self._weights[layers.start]
        spec = weights.spec
        self._store.keep(blocks_of(layers, len(spec.layers)))
        # A boundary's rows are good while the layer before it is: they are that layer's output.
        for boundary in [b for b in self._journals if b - 1 not in keep]:
            self._journals.pop(boundary).close()
        last = layers.stop == len(spec.layers)
        if not last and layers.stop not in self._journals and self._limits.memory + self._limits.disk:
            self._journals[layers.stop] = Journal(self._limits, blocks, spec.hidden, self.counters)
        embedding = weights if layers.start == 0 else None
        return StageExecutor(
            spec, layers, self._runtime, self._store, blocks, self._journals, embedding, context=self._context, grammars=self._grammars
        )

    def _forget(self) -> None:
        self._blocks = 0
        if self._runtime is not None:
            self._runtime.keep(range(0))
        for journal in self._journals.values():
            journal.close()
        self._journals = {}

    def shed(self, wanted: list[range]) -> None:
        """Frees loaded ranges that contain none of the wanted layers. No stage may run them."""
        kept = [held for held in self.layers if any(held.start < w.stop and w.start < held.stop for w in wanted)]
        self._weights = {layer: weights for layer, weights in self._weights.items() if any(layer in held for held in kept)}
        count = len(next(iter(self._weights.values())).spec.layers) if self._weights else 0
        self._store.keep(block for held in kept for block in blocks_of(held, count))

    def rest(self) -> None:
        """Frees keys, values and journals; the weights stay for a later route."""
        self._forget()

    def close(self) -> None:
        """Frees everything."""
        self._forget()
        self._store.keep(())
        self._weights = {}
