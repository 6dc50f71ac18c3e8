"""Experts in a limited number of places in memory, read when a step needs them, or before where it is sure to need them.

What is here runs at once, and the rest as it comes. With so many rows that steps need nearly the same experts every time, each
expert gives up its place when it has run: the disk goes on into it with what the following layers will need.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from typing import Any

from shoal.errors import WeightsUnreadable
from shoal.executor.base import Floats, Wave
from shoal.executor.foresight import MOST_ROWS, Foresight
from shoal.executor.native_blocks import Mlp
from shoal.executor.packed_layers import PackedLayers, expert_unit
from shoal.placement.timeline import EXPERTS, WAITING
from shoal.weights.activity import Activity, WatchedSource
from shoal.weights.eviction import Eviction
from shoal.weights.expected_use import GUESS_RECALL, ExpectedUse
from shoal.weights.prefetch import Foreseen
from shoal.weights.reader import Arrival, Reader
from shoal.weights.residency import Need, Tally, UnitLoad, WeightResidency
from shoal.weights.slot_memory import SlotMemory
from shoal.weights.unit import Unit

READS = 8
"""Under way at once: see benchmarks/disk.py."""
QUEUED = 2 * READS
"""Reads ordered at once of those that a visit waits for."""
AHEAD = 6 * READS
"""Experts that were read and did not run yet, at most, where they give up their places. Each costs a place for what is held from step to
step."""
LAYERS_AHEAD = 4
GUESSED = 32 << 20
"""Bytes that are read at once of what is only guessed, at most."""
TOGETHER = 16
"""Experts that run in one call where they give up their places."""

Policy = Callable[[Sequence[int]], Eviction]
"""Makes an eviction policy for the experts of each layer."""


class ExpertSlots:
    """slots, size: places and the bytes of each. counts: experts of each layer from 0 on. foresight: says what to read ahead. For one
    thread."""

    def __init__(
        self,
        packed: PackedLayers,
        slots: int,
        size: int,
        counts: Sequence[int],
        activity: Activity,
        policy: Policy = ExpectedUse,
        foresight: Foresight | None = None,
    ) -> None:
        self._packed, self._activity = packed, activity
        self._memory: SlotMemory | None = SlotMemory(slots, size)
        self._residency = WeightResidency(slots, counts, policy(counts))
        self._reader: Reader[UnitLoad] = Reader(READS)
        self._all_fit = slots >= sum(counts)
        self._layers = [layer for layer, count in enumerate(counts) if count]
        self._placed: list[Mlp | None] = [None] * slots
        """By slot: the expert as it is put into its block."""
        self._early: dict[int, set[int]] = {layer: set() for layer in self._layers}
        """By layer: experts whose reads were ordered and that did not run since."""
        self._last: dict[int, Sequence[int]] = {}
        """By layer: what its last visit needed."""
        self._twice: dict[int, list[int]] = {}
        """By layer: what its last two visits needed, both."""
        self._foresight = foresight if not self._all_fit else None
        self._most_guessed = min(READS, max(GUESSED // size, 1), slots // 4)
        self._guessed: set[Unit] = set()
        """Being read only because of a guess."""
        self._kept: dict[int, set[int]] = {}
        """By layer: experts that are not evicted while others give up their places."""
        self._recall = 0.0
        """How much of what a visit needs the next one needs, too: of late, over all layers."""

    def close(self) -> None:
        """Frees the memory, too, even while somebody still has this object."""
        self._reader.close()
        self._placed, self._memory = [], None
        if self._foresight is not None:
            self._foresight.close()

    @property
    def tally(self) -> Tally:
        return self._residency.tally

    @property
    def foreseen(self) -> Foreseen:
        return Foreseen() if self._foresight is None else self._foresight.prefetch.foreseen

    def waves(self, layer: int, block: Any, needed: Sequence[int], shared: bool, hidden: Floats) -> Generator[Wave]:
        """Puts the needed experts, which rise, into their block, as they come. shared: whether another one, which is always there, is
        needed after them. hidden: [rows, hidden] after the layer's attention, only to be read. Raises WeightsUnreadable; the block is
        without experts then, as it is at the end."""
        self._compare(layer, needed, len(hidden))
        self._learn(layer, needed)
        sure = self._recall >= GUESS_RECALL and not self._all_fit and len(hidden) > MOST_ROWS
        self._keep(layer, needed) if sure else self._keep_nothing()
        slots = len(self._placed) - sum(len(kept) for of, kept in self._kept.items() if of != layer)
        for begin in range(0, len(needed), slots):
            experts = needed[begin : begin + slots]
            last = begin + len(experts) == len(needed)
            visit, over = _Visit(layer, block, experts, begin, shared and last), True
            try:
                yield from self._passing(visit, needed[begin + slots :]) if sure else self._held(visit, hidden if last else None)
                over = last
            finally:
                while visit.waiting and self._reader.outstanding:  # the step fails: the next one begins with nothing under way
                    with suppress(WeightsUnreadable):
                        self._collect(visit, self._reader.wait())
                visit.give_up(experts)
                if over:
                    self._early[layer].clear()
                    self._residency.done(layer)
                else:  # what was read ahead is for the rest
                    self._early[layer].difference_update(experts)
                    self._residency.release(layer, experts)

    def _learn(self, layer: int, needed: Sequence[int]) -> None:
        twice = sorted(set(self._last.get(layer, ())).intersection(needed))
        if last := self._last.get(layer):
            self._recall = (self._recall + len(twice) / len(last)) / 2
        self._last[layer], self._twice[layer] = needed, twice

    def _keep(self, layer: int, needed: Sequence[int]) -> None:
        """Where every step needs nearly all experts, it does not matter to the hits which of them stay. So as many stay in each layer: then
        the disk has as much to do for each, and is not idle in layers that are here as a whole. Those that run first stay."""
        kept = self._kept.setdefault(layer, set())
        wanted = (len(self._placed) - self._ahead) // len(self._layers)
        for expert in kept.difference(needed):
            kept.remove(expert)
            self._residency.unpin(Unit(layer, expert))
        for expert in needed:
            if len(kept) >= wanted:
                break
            if expert not in kept:
                kept.add(expert)
                self._residency.pin(Unit(layer, expert))

    def _keep_nothing(self) -> None:
        for layer, experts in self._kept.items():
            for expert in experts:
                self._residency.unpin(Unit(layer, expert))
        self._kept.clear()

    def _held(self, visit: _Visit, hidden: Floats | None) -> Generator[Wave]:
        """All stay until the visit ends. hidden: to guess by; None: nothing is guessed."""
        while self._guessed and len(visit.experts) + len(self._guessed) > len(self._placed):
            self._wait(visit)  # guesses take places that this needs
        later = self._take(visit, self._residency.need(visit.layer, visit.experts))
        guesses = [] if later or hidden is None else self._worth_reading(visit.layer, hidden)
        while (ready := visit.came()) or visit.waiting or later:
            if not visit.waiting and not later:
                self._read_guesses(guesses)
            if ready:
                self._activity.turn(EXPERTS, visit.layer)
                yield ready
            else:
                self._wait(visit)
            if later:
                later = self._take(visit, self._residency.more(visit.layer, later))

    def _compare(self, layer: int, needed: Sequence[int], rows: int) -> None:
        """Guesses with what came, before room is made for it."""
        if self._foresight is not None:
            self._foresight.compare(layer, needed, self._residency.pages(layer), rows)

    def _worth_reading(self, layer: int, hidden: Floats) -> list[Unit]:
        """While what the step needs is being read."""
        if self._foresight is None:
            return []
        following = self._foresight.following(layer)
        return [Unit(following, expert) for expert in self._foresight.worth_reading(layer, hidden, self._residency.pages(following))]

    def _read_guesses(self, units: Sequence[Unit]) -> None:
        """Unless the disk still has reads to do: nothing that a step waits for is to wait for a guess."""
        if units and not self._reader.outstanding:
            loads = self._residency.guess(units, self._most_guessed)
            self._guessed.update(load.unit for load in loads)
            self._order(loads)

    def _passing(self, visit: _Visit, following: Sequence[int]) -> Generator[Wave]:
        """Each gives its place up when it has run. following: what the layer needs after this."""
        layer = visit.layer
        together = max(min(TOGETHER, self._ahead // 3), 1)  # the next ones are read meanwhile
        later = self._take(visit, self._residency.need(layer, visit.experts, self._room(layer)))
        while (ready := visit.came(together)) or visit.waiting or later:
            if later:
                stuck = not ready and not visit.waiting
                later = self._take(visit, self._residency.more(layer, QUEUED if stuck else self._room(layer)))
            if not later:
                self._read_ahead(layer, following)
            if ready:
                self._activity.turn(EXPERTS, layer)
                yield ready
                run = visit.numbers(ready)
                visit.give_up(run)
                self._early[layer].difference_update(run)
                self._residency.release(layer, run)
            elif visit.waiting:
                self._wait(visit)
            self._collect(visit, self._reader.poll())

    def _room(self, layer: int) -> int:
        """Reads that may be ordered now of what a visit needs."""
        return max(min(QUEUED - self._reader.outstanding, self._ahead - len(self._early[layer])), 0)

    @property
    def _ahead(self) -> int:
        return max(min(AHEAD, len(self._placed) // 4), 1)

    def _read_ahead(self, layer: int, following: Sequence[int]) -> None:
        """Orders reads of what is needed next: of this layer, then of those after it, around to the first one."""
        if (room := self._ahead - sum(map(len, self._early.values()))) > 0:
            self._order(self._residency.guess(self._expected(layer, following), room))

    def _expected(self, layer: int, following: Sequence[int]) -> Generator[Unit]:
        yield from (Unit(layer, expert) for expert in following)
        at = self._layers.index(layer)
        for later in [*self._layers[at + 1 :], *self._layers[:at]][:LAYERS_AHEAD]:
            yield from (Unit(later, expert) for expert in self._twice.get(later, ()))

    def _take(self, visit: _Visit, need: Need) -> int:
        """How many of the visit's experts have to wait for a place."""
        self._order(need.loads)
        pages = self._residency.pages(visit.layer)
        for unit in need.held:
            visit.place(unit.expert, self._placed[pages[unit.expert]])
        visit.waiting.update(unit.expert for unit in need.coming)
        visit.waiting.update(load.unit.expert for load in need.loads)
        return len(need.later)

    def _order(self, loads: Iterable[UnitLoad]) -> None:
        assert self._memory is not None
        for load in loads:
            self._placed[load.slot] = None
            unit = load.unit
            self._early[unit.layer].add(unit.expert)
            record = self._packed.unit(unit.layer, expert_unit(unit.expert))
            source = WatchedSource(self._packed.source(unit.layer), self._activity, EXPERTS, unit.layer)
            self._reader.submit(source, record.at, self._memory.view(load.slot)[: record.size], load)

    def _wait(self, visit: _Visit) -> None:
        """For the end of a read."""
        self._activity.turn(WAITING, visit.layer)
        self._collect(visit, self._reader.wait())

    def _collect(self, visit: _Visit, arrivals: Iterable[Arrival[UnitLoad]]) -> None:
        """Takes what has come. Raises WeightsUnreadable if something that the visit waits for has not; what was only read ahead is read
        again when it is needed."""
        wrong: WeightsUnreadable | None = None
        for load, error in arrivals:
            unit = load.unit
            waited_for = unit.layer == visit.layer and unit.expert in visit.waiting
            guessed = unit in self._guessed
            self._guessed.discard(unit)
            if error is None:
                error = self._place(load)
            if error is not None and guessed:
                if (again := self._residency.failed_ahead(unit)) is not None:
                    self._order([again])
                continue
            if error is None:
                self._residency.arrived(unit)
                self.tally.bytes_read += self._packed.unit(unit.layer, expert_unit(unit.expert)).size
            else:
                self._residency.failed(unit)
            if waited_for and error is None:
                visit.place(unit.expert, self._placed[load.slot])
            elif waited_for:
                self._packed.unreadable(unit.layer)
                visit.waiting.discard(unit.expert)
                wrong = wrong or error
        if wrong is not None:
            raise wrong

    def _place(self, load: UnitLoad) -> WeightsUnreadable | None:
        assert self._memory is not None
        layer, name = load.unit.layer, expert_unit(load.unit.expert)
        try:
            memory = self._packed.verified(layer, name, self._memory.view(load.slot))
        except WeightsUnreadable as error:
            return error
        self._placed[load.slot] = self._packed.maker(layer, name, memory).expert(load.unit.expert)
        return None


class _Visit:
    """experts: a layer's, as many as there are places. begin: how many of those that it needs were done before. shared: whether the
    shared one is due after them."""

    def __init__(self, layer: int, block: Any, experts: Sequence[int], begin: int, shared: bool) -> None:
        self.layer, self.experts = layer, experts
        self._block, self._begin = block, begin
        self._index = {expert: i for i, expert in enumerate(experts)}
        self._new = {len(experts)} if shared else set[int]()
        """By place among the experts: those in the block that did not run yet, and the shared one."""
        self.waiting: set[int] = set()
        """Those that are being read."""

    def place(self, expert: int, mlp: Mlp | None) -> None:
        self._block.place(expert, mlp)
        self.waiting.discard(expert)
        self._new.add(self._index[expert])

    def give_up(self, experts: Sequence[int]) -> None:
        for expert in experts:
            self._block.place(expert, None)

    def came(self, at_most: int | None = None) -> Wave:
        """The first places of experts in the block that this did not give before."""
        new = sorted(self._new)[:at_most]
        self._new.difference_update(new)
        return [self._begin + i for i in new]

    def numbers(self, wave: Wave) -> list[int]:
        """The experts of a wave, without the shared one."""
        return [self.experts[place - self._begin] for place in wave if place - self._begin < len(self.experts)]
