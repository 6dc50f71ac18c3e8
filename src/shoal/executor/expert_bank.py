"""Experts of many layers that a node holds and runs for stages on other machines: all of them in memory, or as many as fit there, and the
others are read from disk when rows need them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import closing
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from shoal.config import Precision
from shoal.errors import ConfigError, NotEnoughMemory, RemoteProtocolError, WeightsUnreadable
from shoal.executor.cost import expert_bytes
from shoal.executor.native_blocks import BlockMaker
from shoal.executor.packed_layers import Damage, PackedFinder
from shoal.executor.packing import StoredTensors
from shoal.executor.store import RowCounts
from shoal.executor.streamed_bank import StreamedBank
from shoal.models.spec import Experts, ModelSpec
from shoal.models.weights import Weights
from shoal.native import kernels, missing
from shoal.weights.expert_reads import ExpertReads
from shoal.wire.routed import Ints, Routed, Sums

if TYPE_CHECKING:
    from shoal.native import ExpertSet

Table = Mapping[int, frozenset[int]]
"""Experts by layer."""


_COUNTED_AT = 256
"""Questions whose rows are counted together."""


class ExpertBank:
    """One thread runs rows; another may load and shed meanwhile. packed: makes or finds the packed files of a model; None: experts are only
    held in memory. Raises ConfigError without kernels."""

    def __init__(self, spec: ModelSpec, precision: Precision, threads: int, isa: str = "", packed: PackedFinder | None = None) -> None:
        if (module := kernels()) is None:
            raise ConfigError(f"this node cannot hold experts: {missing()}")
        self._module, self._spec, self._precision, self._threads = module, spec, precision, threads
        try:
            self._stage = module.Stage(spec.hidden, threads, isa)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self._packed = packed
        self._sets: dict[int, ExpertSet] = {}
        """Empty while no rows run, if experts are read from disk."""
        self._held: dict[int, frozenset[int]] = {}
        self._counts: dict[int, RowCounts] = {}
        self._ran = deque[tuple[int, Ints, Ints]]()
        """Layers, their experts and the rows of these, not counted yet."""
        self._tallying = Lock()
        """Held while they are counted: whoever asks for counts does not wait until rows have run."""
        self._streamed: StreamedBank | None = None
        """None: all experts are in memory."""
        self._damage = Damage()
        self._ended = ExpertReads()
        """Of those that were streamed before."""
        self._changing = Lock()
        """Held while rows run, and while experts come or go."""
        self._counting = Lock()
        """Held while `_streamed` changes, or is asked for counts."""

    @property
    def name(self) -> str:
        """The runtime, and its instruction set."""
        return f"native/{self._stage.isa}"

    @property
    def held(self) -> Table:
        """By layer, in memory or on disk."""
        return self._held

    @property
    def nbytes(self) -> int:
        """In memory, at most."""
        streamed = self._streamed
        return sum(experts.nbytes for experts in list(self._sets.values())) if streamed is None else streamed.nbytes

    @property
    def expert_rows(self) -> dict[int, RowCounts]:
        """By layer: [experts] rows that each has computed here, whether it still is here or not."""
        with self._tallying:
            self._count()
            return {layer: counts.copy() for layer, counts in list(self._counts.items())}

    @property
    def expert_reads(self) -> ExpertReads:
        """Of experts that rows needed and that were streamed, since the bank was made."""
        with self._counting:
            return self._ended if self._streamed is None else self._ended.plus(self._streamed.reads)

    def lacks(self, experts: Table) -> bool:
        """Whether `hold` has anything to do for these."""
        return bool(self._damage.layers) or any(not wanted <= self._held.get(layer, frozenset()) for layer, wanted in experts.items())

    def hold(self, experts: Table, weights: Weights, memory: int = 0) -> None:
        """Those that are missing, beside those that are here. weights: have all of these layers. memory: bytes that all may take together; 0:
        what they need. If they do not fit beside those that are here, those go first that are not wanted. If they do not fit at all, the
        bank reads from disk what is not in memory, from then on until it is closed: where all fit later, all come to be in memory.

        Raises ModelError, ConfigError; OSError, NotEnoughMemory where files are made.
        """
        for layer, wanted in experts.items():
            self._check(layer, wanted)
        if self._streamed is None and memory and self._size(_both(self._held, experts), weights) > memory:
            if (needed := self._size(experts, weights)) > memory:
                self._stream(experts, weights, needed, memory)
                return
            self.shed(experts)
        if self._streamed is not None:
            self._stream(experts, weights, 0, memory or self._streamed.memory)
            return
        for layer in sorted(experts):
            self.load(layer, experts[layer], weights)

    def load(self, layer: int, experts: Iterable[int], weights: Weights) -> None:
        """Those that are missing, into memory. Raises ModelError, ConfigError."""
        wanted = frozenset(experts)
        self._check(layer, wanted)
        maker = BlockMaker(self._module, self._spec, StoredTensors(weights, self._precision, self._threads), layer)
        for expert in sorted(wanted - self._held.get(layer, frozenset())):
            made = maker.expert(expert)
            with self._changing:
                self._admit(layer, frozenset([expert]))
                self._sets[layer].place(expert, made)
        weights.forget()

    def _admit(self, layer: int, experts: frozenset[int]) -> None:
        kind = self._kind(layer)
        if layer not in self._sets:
            self._sets[layer] = self._module.ExpertSet(
                [None] * kind.count, width=kind.width, hidden=self._spec.hidden, activation=kind.activation
            )
            self._counts.setdefault(layer, np.zeros(kind.count, np.uint64))
        self._held = {**self._held, layer: self._held.get(layer, frozenset()) | experts}

    def _stream(self, experts: Table, weights: Weights, needed: int, memory: int) -> None:
        """Makes the packed files of these and of those that are here; rows run meanwhile. needed: bytes of them all, for a message."""
        if self._packed is None:
            raise NotEnoughMemory(needed, memory, "the experts of this node, which may not read them from disk")
        layers = sorted({*self._held, *experts})
        files = self._packed(weights)
        files.damage = self._damage
        if self._damage.layers:
            files.mend(layers, self._damage.mended())
        else:
            files.make(layers)
        running = self._streamed
        if running is not None and not running.failed and running.memory == memory and running.layers.issuperset(layers):
            files.close()
            new = running
        else:
            try:
                new = StreamedBank(files, layers, memory)
            except BaseException:
                files.close()
                raise
        with self._changing:
            if new is not running:
                self._sets = {}
                self._end_streaming(new)
                for layer, held in self._held.items():
                    self._admit(layer, held)
            for layer, wanted in experts.items():
                self._admit(layer, wanted)

    def _end_streaming(self, following: StreamedBank | None = None) -> None:
        with self._counting:
            ended, self._streamed = self._streamed, following
            if ended is not None:
                self._ended = self._ended.plus(ended.reads)
        if ended is not None:
            ended.close()

    def shed(self, wanted: Mapping[int, Iterable[int]]) -> None:
        """Frees all others."""
        for layer, held in list(self._held.items()):
            kept = held.intersection(wanted.get(layer, ()))
            with self._changing:
                for expert in held - kept:
                    self._sets[layer].place(expert, None)
                self._held = {**self._held, layer: kept} if kept else {of: some for of, some in self._held.items() if of != layer}
                if not kept:
                    del self._sets[layer]

    def close(self) -> None:
        """Frees everything; rows that come later are refused."""
        self.shed({})
        with self._changing:
            self._end_streaming()

    def run(self, routed: Routed) -> Sums:
        """[rows, hidden]: of each row the sum of its experts. Raises RemoteProtocolError for rows that cannot be run here, or not now."""
        said = routed.header
        with self._changing:
            if (experts := self._sets.get(said.layer)) is None:
                raise RemoteProtocolError(f"experts of layer {said.layer} are not here")
            if said.hidden != self._spec.hidden:
                raise RemoteProtocolError(
                    f"rows for experts that cannot be run: they have {said.hidden} values instead of {self._spec.hidden}"
                )
            if said.entries > said.rows * self._kind(said.layer).routing.chosen:
                raise RemoteProtocolError("a row for experts names more of them than a row has")
            try:
                sums = self._partial(experts, routed) if self._streamed is None else self._in_waves(experts, routed, self._streamed)
            except ValueError as error:
                why = str(error)
                if lacking := sorted(set(routed.experts.tolist()) - self._held[said.layer]):
                    why = f"expert {lacking[0]} is not here"
                raise RemoteProtocolError(f"rows for experts of layer {said.layer} that cannot be run: {why}") from error
            except WeightsUnreadable as error:
                raise RemoteProtocolError(f"experts of layer {said.layer} cannot be read: {error}") from error
            self._ran.append((said.layer, routed.experts.copy(), np.diff(routed.offsets)))
            if len(self._ran) >= _COUNTED_AT:
                with self._tallying:
                    self._count()
        return sums

    def _count(self) -> None:
        """Not with every question, which has no time for it."""
        while self._ran:
            layer, experts, rows = self._ran.popleft()
            self._counts[layer][experts] += rows.astype(np.uint64)

    def _partial(self, experts: ExpertSet, routed: Routed) -> Sums:
        of = routed.header
        return self._stage.partial(experts, np.frombuffer(routed.body, np.uint8), of.rows, of.experts, of.entries, of.rounded)

    def _in_waves(self, experts: ExpertSet, routed: Routed, streamed: StreamedBank) -> Sums:
        """Sums are exact, so it does not matter which experts come together."""
        routed.check()
        needed = routed.experts.tolist()
        if not self._held[routed.layer].issuperset(needed):
            raise ValueError("an expert is not here")
        sums = np.zeros((routed.rows, routed.hidden))
        with closing(streamed.waves(routed.layer, experts, needed, routed.rows)) as waves:
            for wave in waves:
                part, rows = routed.only(wave)
                sums[rows] += self._partial(experts, part)
        return sums

    def _size(self, experts: Table, weights: Weights) -> int:
        """Bytes."""
        return sum(len(some) * expert_bytes(self._spec, weights, self._precision, layer) for layer, some in experts.items())

    def _check(self, layer: int, experts: Iterable[int]) -> None:
        kind = self._kind(layer)
        for expert in experts:
            if not 0 <= expert < kind.count:
                raise ConfigError(f"layer {layer} has {kind.count} experts, and no number {expert}")

    def _kind(self, layer: int) -> Experts:
        kind = self._spec.layers[layer].feed_forward if 0 <= layer < len(self._spec.layers) else None
        if not isinstance(kind, Experts):
            raise ConfigError(f"layer {layer} of the model has no experts")
        return kind


def _both(a: Table, b: Table) -> dict[int, frozenset[int]]:
    return {layer: a.get(layer, frozenset[int]()) | b.get(layer, frozenset[int]()) for layer in {*a, *b}}
