"""Weights by blocks, as a runtime executes them. This store holds all that was loaded into it."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.errors import LocalProtocolError
from shoal.executor.base import BlockPart, Packed, WeightBlock


def blocks_of(layers: range, model_layers: int) -> list[WeightBlock]:
    """Those of some layers; with the last layer, the head's."""
    head = [WeightBlock(model_layers, BlockPart.HEAD)] if layers.stop == model_layers else []
    return [*(WeightBlock(layer, part) for layer in layers for part in (BlockPart.ATTENTION, BlockPart.FEED_FORWARD)), *head]


class WeightStore:
    """One thread may `put` while another leases."""

    def __init__(self) -> None:
        self._held: dict[WeightBlock, Packed] = {}

    @property
    def nbytes(self) -> int:
        return sum(packed.nbytes for packed in list(self._held.values()))

    def put(self, block: WeightBlock, packed: Packed) -> None:
        self._held[block] = packed

    def lease(self, block: WeightBlock) -> Packed:
        try:
            return self._held[block]
        except KeyError:
            raise LocalProtocolError(f"the weights of layer {block.layer}, {block.part}, are not here") from None

    def keep(self, blocks: Iterable[WeightBlock]) -> None:
        """Frees all others."""
        wanted = set(blocks)
        self._held = {block: packed for block, packed in self._held.items() if block in wanted}
