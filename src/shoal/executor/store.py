"""Weights by blocks, as a runtime executes them. This store holds all that was loaded into it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from threading import Lock
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from shoal.errors import LocalProtocolError
from shoal.executor.base import BlockPart, Floats, Packed, Wave, WeightBlock


def blocks_of(layers: range, model_layers: int) -> list[WeightBlock]:
    """Those of some layers; with the last layer, the head's."""
    head = [WeightBlock(model_layers, BlockPart.HEAD)] if layers.stop == model_layers else []
    return [*(WeightBlock(layer, part) for layer in layers for part in (BlockPart.ATTENTION, BlockPart.FEED_FORWARD)), *head]


RowCounts = NDArray[np.uint64]
"""[experts] rows that each expert of a layer has computed."""


@runtime_checkable
class Counting(Protocol):
    """A block that counts the rows of its experts, from 0 when it is made. The counts may be read while a step runs."""

    @property
    def counts(self) -> RowCounts: ...


class WeightStore:
    """One thread may `put` or read counts while another leases."""

    def __init__(self) -> None:
        self._held: dict[WeightBlock, Packed] = {}
        self._freed: dict[int, RowCounts] = {}
        """By layer: the counts of blocks that are no longer held."""
        self._changing = Lock()

    @property
    def nbytes(self) -> int:
        return sum(packed.nbytes for packed in list(self._held.values()))

    @property
    def waited(self) -> float:
        return 0.0

    @property
    def expert_rows(self) -> dict[int, RowCounts]:
        """By layer, for layers whose blocks count, whether they are held or were. No count falls when a layer is freed and loaded again.
        While a step runs, its rows may be counted for some experts and not yet for others."""
        with self._changing:
            return _plus(self._freed, self._held)

    def put(self, block: WeightBlock, packed: Packed) -> None:
        with self._changing:
            if (old := self._held.get(block)) is not None:
                self._freed = _plus(self._freed, {block: old})
            self._held[block] = packed

    def runs(self, layers: range) -> list[range]:
        return [layers]

    def apart(self, layer: int) -> bool:
        return False

    def release(self, layers: range) -> None:
        pass

    def elsewhere(self, layer: int) -> None:
        return None

    def waves(self, layer: int, needed: Sequence[int], hidden: Floats) -> Generator[Wave]:
        raise LocalProtocolError(f"the experts of layer {layer} are all here")

    def lease(self, block: WeightBlock) -> Packed:
        try:
            return self._held[block]
        except KeyError:
            raise LocalProtocolError(f"the weights of layer {block.layer}, {block.part}, are not here") from None

    def remember(self, rows: Mapping[int, RowCounts]) -> None:
        """Adds counts of another store that ends."""
        with self._changing:
            self._freed = summed(self._freed, rows)

    def keep(self, blocks: Iterable[WeightBlock]) -> None:
        """Frees all others. No step may run them."""
        wanted = set(blocks)
        with self._changing:
            freed = {block: packed for block, packed in self._held.items() if block not in wanted}
            self._freed = _plus(self._freed, freed)
            self._held = {block: packed for block, packed in self._held.items() if block in wanted}


def _plus(rows: Mapping[int, RowCounts], blocks: Mapping[WeightBlock, Packed]) -> dict[int, RowCounts]:
    return summed(rows, {block.layer: packed.counts for block, packed in blocks.items() if isinstance(packed, Counting)})


def summed(a: Mapping[int, RowCounts], b: Mapping[int, RowCounts]) -> dict[int, RowCounts]:
    """By layer, of two places that the same layers' experts ran in."""
    return {**a, **{layer: a[layer] + rows if layer in a else rows for layer, rows in b.items()}}
