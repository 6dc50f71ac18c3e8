"""What a node holds of a model, from epoch to epoch: layers, their keys and values, and journals.

A stage is a view of it. When the layers are redistributed, a node loads those it lacks beside those that run, and frees the
rest when the new route is entered. Keys and values stay if the head says that they are still good.
"""

from __future__ import annotations

from threading import Lock

from shoal.errors import ConfigError, DamagedPackedFile, LocalProtocolError
from shoal.executor.base import Leases, Packed, Runtime, RuntimeFactory, WeightBlock
from shoal.executor.constraint import Holder
from shoal.executor.elsewhere import Elsewhere
from shoal.executor.expert_split import Experts, RemoteExperts
from shoal.executor.journal import Journal, JournalCounters, JournalLimits
from shoal.executor.native_runtime import NativeRuntime
from shoal.executor.packed_layers import Damage, PackedFinder, PackedLayers
from shoal.executor.part_counts import PartCounts
from shoal.executor.stage import StageExecutor
from shoal.executor.store import RowCounts, WeightStore, blocks_of, summed
from shoal.executor.streamed_store import StreamedStore
from shoal.models.weights import Weights
from shoal.weights.activity import Activity
from shoal.weights.expert_reads import ExpertReads, counted
from shoal.weights.residency import Tally


class Shard:
    """context: the most tokens of a sequence. grammars: which the last stage applies to answers. packed: makes or finds the packed files of
    a model. One thread may `load` while another runs a stage."""

    def __init__(
        self,
        make_runtime: RuntimeFactory,
        journals: JournalLimits | None = None,
        grammars: Holder | None = None,
        context: int = 0,
        packed: PackedFinder | None = None,
    ) -> None:
        self.counters = JournalCounters()
        self.part_counts = PartCounts()
        self._grammars, self._context = grammars, context
        self._make, self._packed = make_runtime, packed
        self._limits = journals or JournalLimits()
        self._runtime: Runtime | None = None
        self._store = WeightStore()
        self._streamed: StreamedStore | None = None
        """The weights of the running stage, if they are streamed; `_store` is empty then."""
        self._weights: dict[int, Weights] = {}
        """What each loaded layer was loaded from."""
        self._lacking: dict[int, frozenset[int]] = {}
        """Experts that a loaded layer was packed without."""
        self._owed: dict[int, Weights] = {}
        """Layers that are to be held and were not packed yet, because a streamed stage has the memory."""
        self._files: dict[int, Weights] = {}
        """What the packed files of layers were made of."""
        self._damage = Damage()
        """Of the packed files."""
        self._streaming = Lock()
        """Held while `_streamed` changes, or is asked for counts."""
        self._ended = ExpertReads()
        """Of stages that streamed before."""
        self._blocks = 0
        """KV blocks of each layer; 0: there are no keys and values."""
        self._journals: dict[int, Journal] = {}

    @property
    def layers(self) -> list[range]:
        """The loaded ranges of layers."""
        return ranges(sorted(self._weights.keys() | self._owed.keys() | self._files.keys()))

    @property
    def nbytes(self) -> int:
        return self._store.nbytes if self._streamed is None else self._streamed.nbytes

    @property
    def expert_rows(self) -> dict[int, RowCounts]:
        """By layer, for layers with experts that are or were here, since the shard was made; empty if the runtime does not count. Any
        thread may read it while another runs a stage: see WeightStore."""
        with self._streaming:
            return self._store.expert_rows if self._streamed is None else summed(self._store.expert_rows, self._streamed.expert_rows)

    @property
    def tally(self) -> Tally:
        """Of experts that steps needed, since the stage was entered."""
        return Tally() if self._streamed is None else self._streamed.tally

    @property
    def activity(self) -> Activity:
        """What disk and processor do, since the stage was entered; nothing is recorded where all weights are held."""
        return Activity() if self._streamed is None else self._streamed.activity

    @property
    def expert_reads(self) -> ExpertReads:
        """Since the shard was made. As with `expert_rows`, any thread may read it, and no count falls."""
        with self._streaming:
            running = self._streamed
            return self._ended if running is None else self._ended.plus(counted(running.tally, running.foreseen))

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

    def missing(self, layers: range, streamed: bool = False, elsewhere: Experts | None = None) -> list[range]:
        """Those of the layers that would have to be loaded, or packed into files if they are to be streamed. elsewhere: by layer, the experts
        that the stage does not need, because they run on other machines."""
        here = self._files.keys() - self._unreadable() if streamed else self._weights.keys() | self._owed.keys()
        spared = elsewhere or {}
        return ranges(
            [layer for layer in layers if layer not in here or (not streamed and not self._lacks(layer) <= spared.get(layer, frozenset()))]
        )

    def _lacks(self, layer: int) -> frozenset[int]:
        return self._lacking.get(layer, frozenset()) if layer in self._weights else frozenset()

    def _unreadable(self) -> set[int]:
        """Layers whose packed files have to be made again, or the last one for that of the head."""
        return {layer for layer, weights in self._files.items() for at in _files_of(layer, weights) if at in self._damage.layers}

    def load(self, layers: range, weights: Weights, streamed: bool = False, elsewhere: Experts | None = None) -> None:
        """Loads the layers that are missing, all or none; for a stage that streams them, makes their files instead. A layer that has too few of
        its experts is loaded again, with those that it has, because a stage may run it.

        Raises ModelError, ConfigError; OSError where files are made.
        """
        if streamed and self._damage.layers and self._runtime is not None:
            self._mend(self._runtime)
        absent = self.missing(layers, streamed, elsewhere)
        for part in absent:
            weights.check(part)
        runtime = self._runtime or self._make(weights, layers.start)
        every = dict.fromkeys((layer for part in absent for layer in part), weights)
        if streamed:
            files = self._opened(weights, runtime)
            for part in absent:
                wanted = [at for layer in part for at in _files_of(layer, weights)]
                files.make(wanted, self._damage.layers)
                self._damage.layers.difference_update(wanted)
            self._files = {**self._files, **every}
        elif self._streamed is not None:
            self._owed = {**self._owed, **every}
        else:
            self._pack(runtime, every, elsewhere or {})
        self._runtime = runtime

    def _mend(self, runtime: Runtime) -> None:
        """Makes damaged files again; see PackedLayers."""
        times = self._damage.mended()
        for weights in {id(weights): weights for weights in self._files.values()}.values():
            files = self._opened(weights, runtime)
            try:
                files.mend([at for layer, of in sorted(self._files.items()) if of is weights for at in _files_of(layer, weights)], times)
            finally:
                files.close()

    def _opened(self, weights: Weights, runtime: Runtime) -> PackedLayers:
        """The packed files of a model."""
        if self._packed is None or not isinstance(runtime, NativeRuntime):
            raise ConfigError(f"the model is larger than the memory for it, and {runtime.name} cannot stream it; use --runtime native")
        files = self._packed(weights)
        files.damage = self._damage
        return files

    def _pack(self, runtime: Runtime, layers: dict[int, Weights], elsewhere: Experts) -> None:
        packed: dict[WeightBlock, Packed] = {}
        lacking: dict[int, frozenset[int]] = {}
        for layer, weights in layers.items():
            spared = elsewhere.get(layer, frozenset[int]())
            lacking[layer] = spared & self._lacks(layer) if layer in self._weights else spared
            for block in blocks_of(range(layer, layer + 1), len(weights.spec.layers)):
                packed[block] = runtime.pack(weights, block, lacking[layer])
                weights.forget()
        for block, made in packed.items():
            self._store.put(block, made)
        self._weights, self._lacking = {**self._weights, **layers}, {**self._lacking, **lacking}

    def enter(self, layers: range, keep: range, blocks: int, memory: int = 0, remote: RemoteExperts | None = None) -> StageExecutor:
        """The stage of a new epoch: all of `layers` are loaded, and only the keys and values of `keep` are still good. Frees
        everything else. memory: bytes that weights may take if they are streamed; 0: all are held. remote: experts of these layers that workers hold.

        Raises LocalProtocolError if something that it needs is not here; WeightsUnreadable, NotEnoughMemory if it streams.
        """
        if (lost := self.missing(layers, memory > 0, None if remote is None else remote.only)) or self._runtime is None:
            raise LocalProtocolError(f"layers {lost} are not loaded")
        if self._blocks and (self._blocks != blocks or not len(keep)):
            self._forget()
        if not self._blocks:
            if len(keep):
                raise LocalProtocolError(f"keys and values of layers {keep.start} to {keep.stop - 1} are not here")
            self._blocks = blocks
            self._runtime.open(blocks)
        self._runtime.keep(keep)
        weights = self._stream(layers, memory) if memory else self._hold(layers, {} if remote is None else remote.only)
        spec = weights.spec
        # A boundary's rows are good while the layer before it is: they are that layer's output.
        for boundary in [b for b in self._journals if b - 1 not in keep]:
            self._journals.pop(boundary).close()
        last = layers.stop == len(spec.layers)
        if not last and layers.stop not in self._journals and self._limits.memory + self._limits.disk:
            self._journals[layers.stop] = Journal(self._limits, blocks, spec.hidden, self.counters)
        embedding = weights if layers.start == 0 else None
        store: Leases = self._streamed or self._store
        if remote is not None:
            store = Elsewhere(store, remote)
        return StageExecutor(
            spec,
            layers,
            self._runtime,
            store,
            blocks,
            self._journals,
            embedding,
            context=self._context,
            grammars=self._grammars,
            counts=self.part_counts,
        )

    def _hold(self, layers: range, elsewhere: Experts) -> Weights:
        """Makes the stage's layers the only ones, all of them held."""
        self._end_streaming()
        self._weights = {layer: weights for layer, weights in self._weights.items() if layer in layers}
        if owed := {layer: weights for layer, weights in self._owed.items() if layer in layers and layer not in self._weights}:
            assert self._runtime is not None
            self._pack(self._runtime, owed, elsewhere)
        self._owed, self._files = {}, {}
        weights = self._weights[layers.start]
        self._store.keep(blocks_of(layers, len(weights.spec.layers)))
        return weights

    def _stream(self, layers: range, memory: int) -> Weights:
        """Makes the stage's layers the only ones, read as they are needed."""
        assert self._runtime is not None
        self._store.keep(())
        self._weights, self._owed = {}, {}
        self._files = {layer: weights for layer, weights in self._files.items() if layer in layers}
        weights = self._files[layers.start]
        running = self._streamed
        if running is None or running.failed or (running.layers, running.memory) != (layers, memory):
            self._end_streaming()
            self._begin_streaming(self._opened(weights, self._runtime), layers, memory)
        return weights

    def _begin_streaming(self, packed: PackedLayers, layers: range, memory: int) -> None:
        try:
            store = StreamedStore(packed, layers, memory)
        except BaseException as error:
            packed.close()
            if isinstance(error, OSError | DamagedPackedFile):
                self._files = {}  # look which are still there, and make the others
            raise
        try:
            store.fill()
        except BaseException:
            store.close()
            raise
        self._streamed = store

    def _end_streaming(self) -> None:
        with self._streaming:
            if (ended := self._streamed) is not None:
                self._store.remember(ended.expert_rows)
                self._ended = self._ended.plus(counted(ended.tally, ended.foreseen))
                self._streamed = None
        if ended is not None:
            ended.close()

    def _forget(self) -> None:
        self._blocks = 0
        if self._runtime is not None:
            self._runtime.keep(range(0))
        for journal in self._journals.values():
            journal.close()
        self._journals = {}

    def shed(self, wanted: list[range]) -> None:
        """Frees loaded ranges that contain none of the wanted layers, and what is in memory of streamed ones. No stage may run them."""
        if self._streamed is not None and not any(layer in self._streamed.layers for w in wanted for layer in w):
            self._end_streaming()
        kept = [held for held in ranges(sorted(self._weights)) if any(held.start < w.stop and w.start < held.stop for w in wanted)]
        self._weights = {layer: weights for layer, weights in self._weights.items() if any(layer in held for held in kept)}
        count = len(next(iter(self._weights.values())).spec.layers) if self._weights else 0
        self._store.keep(block for held in kept for block in blocks_of(held, count))

    def rest(self) -> None:
        """Frees keys, values and journals; the weights stay for a later route."""
        self._forget()

    def close(self) -> None:
        """Frees everything."""
        self._forget()
        self._end_streaming()
        self._store.keep(())
        self._weights, self._owed, self._files = {}, {}, {}


def _files_of(layer: int, weights: Weights) -> list[int]:
    """A layer's packed file, and with the last one that of the head."""
    last = layer + 1 == len(weights.spec.layers)
    return [layer, layer + 1] if last else [layer]


def ranges(layers: list[int]) -> list[range]:
    """Runs of layers, which rise."""
    out: list[range] = []
    for layer in layers:
        if out and out[-1].stop == layer:
            out[-1] = range(out[-1].start, layer + 1)
        else:
            out.append(range(layer, layer + 1))
    return out
