"""Experts of a bank, of which only a part is in memory: the rest is read from packed files while rows run."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from shoal.executor.expert_slots import ExpertSlots
from shoal.executor.packed_layers import PackedLayers, count_of
from shoal.models.spec import Experts
from shoal.placement.division import StageSizes, divide
from shoal.weights.activity import Activity
from shoal.weights.expert_reads import ExpertReads, counted
from shoal.weights.prefetch import Foreseen

if TYPE_CHECKING:
    from shoal.native import ExpertSet


class StreamedBank:
    """files: belong to this once it is made. layers: with experts, whose files are made. memory: bytes that experts may take. For one thread.
    Raises NotEnoughMemory, DamagedPackedFile, OSError."""

    def __init__(self, files: PackedLayers, layers: Collection[int], memory: int) -> None:
        self.layers, self.memory = frozenset(layers), memory
        counts = {layer: count_of(files.spec, layer) for layer in layers}
        chosen = max(kind.routing.chosen for layer in layers if isinstance(kind := files.spec.layers[layer].feed_forward, Experts))
        sizes = StageSizes({}, {layer: files.expert_size(layer) for layer in layers}, counts, chosen)
        division = divide(sizes, memory)
        for layer in layers:  # before the first rows: opening may fail
            files.source(layer)
        self.nbytes = division.nbytes
        self._files = files
        every = [counts.get(layer, 0) for layer in range(len(files.spec.layers))]
        self._slots = ExpertSlots(files, division.slots, sizes.slot, every, Activity())

    def waves(self, layer: int, experts: ExpertSet, needed: Sequence[int], rows: int) -> Generator[list[int]]:
        """Puts experts into their set as they come; each comes once, and may be gone when others come. needed: by rising number. Raises
        WeightsUnreadable; the set is empty then, as it is at the end."""
        nothing = np.empty((rows, 0), np.float32)  # to guess by: the next layer's router is elsewhere
        for wave in self._slots.waves(layer, experts, needed, False, nothing):
            yield [needed[place] for place in wave]

    @property
    def reads(self) -> ExpertReads:
        return counted(self._slots.tally, Foreseen())

    @property
    def failed(self) -> bool:
        """Whether something could not be read: it has to be replaced by another one, whose files were opened anew."""
        return self._files.failed

    def close(self) -> None:
        """Frees the memory. No rows may run."""
        self._slots.close()
        self._files.close()
