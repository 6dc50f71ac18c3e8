"""Weights of a stage of which only a part is in memory: the rest is read from packed files while the stage runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from itertools import groupby

from shoal.errors import LocalProtocolError
from shoal.executor.base import BlockPart, Floats, Packed, Wave, WeightBlock
from shoal.executor.constant_parts import ConstantParts
from shoal.executor.expert_slots import ExpertSlots, Policy
from shoal.executor.foresight import Foresight, Routers
from shoal.executor.next_router import NextRouter
from shoal.executor.packed_layers import CONSTANT, PackedLayers
from shoal.executor.store import RowCounts
from shoal.placement.division import divide
from shoal.weights.activity import Activity
from shoal.weights.expected_use import ExpectedUse
from shoal.weights.prefetch import Foreseen
from shoal.weights.residency import Tally
from shoal.weights.slot_memory import SlotMemory


class StreamedStore:
    """layers: of the stage, whose files are made. memory: bytes that their weights may take. packed: belongs to the store once it is made.
    policy: of the experts. foresight: makes what decides about reads ahead. One thread runs steps; another may read the counts. Raises
    NotEnoughMemory, DamagedPackedFile, OSError."""

    def __init__(
        self,
        packed: PackedLayers,
        layers: range,
        memory: int,
        policy: Policy = ExpectedUse,
        foresight: Callable[[Sequence[int], Routers], Foresight | None] = Foresight,
    ) -> None:
        sizes = packed.sizes(layers)
        self.sizes, self.division = sizes, divide(sizes, memory)
        self.layers, self.memory = layers, memory
        self.activity = Activity()
        self._packed, self._has_head = packed, sizes.head > 0
        for layer in (*layers, layers.stop) if self._has_head else layers:  # before the first step: opening may fail
            packed.source(layer)
        counts = [sizes.experts.get(layer, 0) for layer in range(layers.stop)]
        self._head: Packed | None = None
        with ExitStack() as made:
            slots, guesses = self.division.slots, foresight(counts, self._router)
            self._experts = ExpertSlots(packed, slots, sizes.slot, counts, self.activity, policy, guesses) if slots else None
            if self._experts is not None:
                made.callback(self._experts.close)
            self._constant = ConstantParts(packed, layers, self.division.held, self.activity)
            made.pop_all()

    def fill(self) -> None:
        """Reads what is held all the time. Raises WeightsUnreadable."""
        self._constant.fill()
        if self._has_head:
            at = self.layers.stop
            memory = SlotMemory(1, self._packed.unit(at, CONSTANT).size).view(0)
            self._head = self._packed.maker(at, CONSTANT, self._packed.read(at, CONSTANT, memory)).block(BlockPart.HEAD)

    def close(self) -> None:
        """Frees everything, even while a stage of the past still has the store; only the counts stay. No step may run."""
        self._constant.close()
        if self._experts is not None:
            self._experts.close()
        self._head = None
        self._packed.close()

    @property
    def nbytes(self) -> int:
        """At most."""
        return self.division.nbytes

    @property
    def waited(self) -> float:
        return self.activity.sums.waiting

    @property
    def failed(self) -> bool:
        """Whether something could not be read: it has to be replaced by another store, whose files were opened anew."""
        return self._packed.failed

    @property
    def expert_rows(self) -> dict[int, RowCounts]:
        return self._constant.counts

    @property
    def tally(self) -> Tally:
        """Of experts that were needed and held, or read."""
        return Tally() if self._experts is None else self._experts.tally

    @property
    def foreseen(self) -> Foreseen:
        """Of guesses about what will be needed."""
        return Foreseen() if self._experts is None else self._experts.foreseen

    def runs(self, layers: range) -> list[range]:
        out: list[range] = []
        for together, group in groupby(layers, lambda layer: self._constant.holds(layer) and not self.apart(layer)):
            found = list(group)
            out += [range(found[0], found[-1] + 1)] if together else [range(layer, layer + 1) for layer in found]
        return out

    def apart(self, layer: int) -> bool:
        return layer in self.sizes.experts

    def lease(self, block: WeightBlock) -> Packed:
        if block.part is BlockPart.HEAD and self._head is not None:
            leased = self._head
        elif block.layer in self.layers:
            leased = self._constant.lease(block.layer)[block.part]
        else:
            raise LocalProtocolError(f"the weights of layer {block.layer}, {block.part}, are not here")
        if not self.activity.computes:
            self.activity.turn(block.part, block.layer)
        return leased

    def release(self, layers: range) -> None:
        self.activity.turn()
        self._constant.release(layers)

    def _router(self, layer: int) -> NextRouter | None:
        tensors = self._constant.tensors(layer)
        return None if tensors is None else NextRouter(tensors, self._packed.spec, layer)

    def elsewhere(self, layer: int) -> None:
        return None

    def waves(self, layer: int, needed: Sequence[int], hidden: Floats) -> Generator[Wave]:
        assert self._experts is not None
        block = self._constant.lease(layer)[BlockPart.FEED_FORWARD]
        shared = needed[-1] == self.sizes.experts[layer]
        if shared and len(needed) == 1:  # it is always here
            yield [0]
        else:
            yield from self._experts.waves(layer, block, needed[:-1] if shared else needed, shared, hidden)
