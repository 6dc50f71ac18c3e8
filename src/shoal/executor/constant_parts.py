"""The parts of a stage's layers that every step reads: held, or streamed through a ring of two buffers in the order of the layers."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from shoal.errors import WeightsUnreadable
from shoal.executor.base import BlockPart, Packed
from shoal.executor.packed_layers import CONSTANT, PackedLayers
from shoal.executor.packing import UnitTensors
from shoal.executor.store import Counting, RowCounts, summed
from shoal.placement.division import RING
from shoal.placement.timeline import WAITING
from shoal.weights.activity import Activity, WatchedSource
from shoal.weights.reader import Reader
from shoal.weights.slot_memory import SlotMemory

Blocks = dict[BlockPart, Packed]


class ConstantParts:
    """layers: of the stage, without the head. held: those that stay. One thread leases; another may read the counts."""

    def __init__(self, packed: PackedLayers, layers: range, held: frozenset[int], activity: Activity) -> None:
        self._packed, self._held, self._activity = packed, held, activity
        self._blocks: dict[int, Blocks] = {}
        """Of layers that are here."""
        self._tensors: dict[int, UnitTensors] = {}
        """Of layers that stay."""
        self._changing = Lock()
        self._counted: dict[int, RowCounts] = {}
        """Rows of experts whose blocks were given up."""
        self._streamed = [layer for layer in layers if layer not in held]
        self._ring = SlotMemory(RING, max(packed.unit(layer, CONSTANT).size for layer in self._streamed)) if self._streamed else None
        self._reader: Reader[int] = Reader(1)
        self._slots: list[int | None] = [None] * RING
        """The layer that is in each buffer, or on its way into it."""
        self._coming: set[int] = set()
        self._running: set[int] = set()

    def fill(self) -> None:
        """Reads what stays. Raises WeightsUnreadable."""
        sizes = {layer: self._packed.unit(layer, CONSTANT).size for layer in sorted(self._held)}
        if not sizes:
            return
        memory, at = SlotMemory(1, sum(sizes.values())).view(0), 0
        for layer, size in sizes.items():
            self._came(layer, self._packed.read(layer, CONSTANT, memory[at : at + size]))
            at += size

    def close(self) -> None:
        """Frees the memory, too, even while somebody still has this object; the counts stay."""
        self._reader.close()
        with self._changing:
            for layer, blocks in self._blocks.items():
                self._counted = summed(self._counted, _counts(layer, blocks))
            self._blocks, self._tensors = {}, {}
        self._ring = None

    @property
    def counts(self) -> dict[int, RowCounts]:
        """See WeightStore.expert_rows."""
        with self._changing:
            counts = dict(self._counted)
            for layer, blocks in self._blocks.items():
                counts = summed(counts, _counts(layer, blocks))
            return counts

    def tensors(self, layer: int) -> UnitTensors | None:
        """Of a layer that stays, until `close`; their memory is that of its blocks."""
        return self._tensors.get(layer)

    def holds(self, layer: int) -> bool:
        return layer in self._held

    def lease(self, layer: int) -> Blocks:
        """The blocks of a layer, which stay until `release`; the next streamed layer is read meanwhile. Raises WeightsUnreadable."""
        self._running.add(layer)
        if layer in self._held:
            return self._blocks[layer]
        tried = False
        while layer not in self._blocks:
            self._activity.turn(WAITING, layer)
            if layer not in self._coming:
                self._order(layer)
                tried = True
            self._collect(layer if tried else None)  # what was read ahead in vain is read once more
        self._read_ahead(layer)
        return self._blocks[layer]

    def release(self, layers: Sequence[int]) -> None:
        self._running.difference_update(layers)
        if streamed := [layer for layer in layers if layer in self._slots]:
            self._read_ahead(streamed[-1])

    def _read_ahead(self, layer: int) -> None:
        """Reads the streamed layers after this one into buffers that are free."""
        at = self._streamed.index(layer)
        for ahead in range(1, min(RING, len(self._streamed))):
            following = self._streamed[(at + ahead) % len(self._streamed)]
            if following not in self._slots and self._free() is not None:
                self._order(following)

    def _free(self) -> int | None:
        """A buffer that may be overwritten."""
        return next((i for i, layer in enumerate(self._slots) if layer not in self._running and layer not in self._coming), None)

    def _order(self, layer: int) -> None:
        while (slot := self._free()) is None:
            self._collect()
        if (gone := self._slots[slot]) is not None:
            with self._changing:
                self._counted = summed(self._counted, _counts(gone, self._blocks.pop(gone)))
        self._slots[slot] = layer
        self._coming.add(layer)
        assert self._ring is not None
        unit = self._packed.unit(layer, CONSTANT)
        source = WatchedSource(self._packed.source(layer), self._activity, CONSTANT, layer)
        self._reader.submit(source, unit.at, self._ring.view(slot)[: unit.size], layer)

    def _collect(self, wanted: int | None = None) -> None:
        """Waits for reads to end. Raises WeightsUnreadable if that of `wanted` failed."""
        assert self._ring is not None
        wrong: WeightsUnreadable | None = None
        for layer, error in self._reader.wait():
            self._coming.remove(layer)
            slot = self._slots.index(layer)
            if error is None:
                try:
                    self._came(layer, self._packed.verified(layer, CONSTANT, self._ring.view(slot)))
                    continue
                except WeightsUnreadable as fault:
                    error = fault
            self._slots[slot] = None
            if layer == wanted:
                self._packed.unreadable(layer)
                wrong = error
        if wrong is not None:
            raise wrong

    def _came(self, layer: int, memory: NDArray[np.uint8]) -> None:
        maker = self._packed.maker(layer, CONSTANT, memory)
        if layer in self._held:
            self._tensors[layer] = UnitTensors(self._packed.unit(layer, CONSTANT), memory)
        blocks = {BlockPart.ATTENTION: maker.block(BlockPart.ATTENTION), BlockPart.FEED_FORWARD: maker.block(BlockPart.FEED_FORWARD, False)}
        with self._changing:
            self._blocks[layer] = blocks


def _counts(layer: int, blocks: Blocks) -> dict[int, RowCounts]:
    block = blocks[BlockPart.FEED_FORWARD]
    return {layer: block.counts} if isinstance(block, Counting) else {}
