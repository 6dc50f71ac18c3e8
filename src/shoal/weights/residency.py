"""Which units of weights are in which slots of memory. No memory is touched here, and nothing is read.

A slot is free, or it belongs to one unit, which is

    loading   `need` or `guess` asked to read it into the slot; until `arrived` or `failed`
    live      needed by the visit of its layer that is under way; until `release` or `done`
    pinned    until `unpin`
    guessed   read ahead and not needed so far: it goes only if nothing else can, until its layer's next visit has passed
    offered   held, and none of these: the eviction policy may choose it

A unit may be loading, live and pinned at once. Only offered and guessed ones are evicted.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shoal.weights.eviction import Eviction
from shoal.weights.unit import Unit


class UnitLoad(NamedTuple):
    """`unit` has to be read into `slot`; whatever was there has been evicted."""

    unit: Unit
    slot: int


class Need(NamedTuple):
    """What a visit's units are: every one is in one of these lists."""

    held: list[Unit]
    """In their slots, live."""
    loads: list[UnitLoad]
    """To be read now, live."""
    coming: list[Unit]
    """Reads of these are under way already, live."""
    later: list[Unit]
    """No slot could be had for these, or none was wanted yet. `more` asks again; `next_wave` does, when the others are done with."""


@dataclass
class Tally:
    """Units, counted since the beginning."""

    hits: int = 0
    """Needed and held."""
    misses: int = 0
    """Needed and neither held nor on the way."""
    awaited: int = 0
    """Needed and on the way."""
    evictions: int = 0
    guessed: int = 0
    """Read ahead."""
    guessed_used: int = 0
    """Read ahead, and then needed."""
    guessed_wasted: int = 0
    """Read ahead, and evicted or failed before they were needed."""
    failures: int = 0
    bytes_read: int = 0
    """Counted by who reads."""

    @property
    def hit_rate(self) -> float:
        """Of all units needed, those held; 0 before the first."""
        return self.hits / max(self.hits + self.misses + self.awaited, 1)


class WeightResidency:
    """The page tables of a stage's layers over one pool of slots.

    slots: at least 1.
    experts: the units of each layer; 0 where a layer has none.
    policy: a new one; it belongs to this object.
    """

    def __init__(self, slots: int, experts: Sequence[int], policy: Eviction) -> None:
        if slots < 1:
            raise ValueError("weights need at least one slot")
        self.tally = Tally()
        self._policy = policy
        self._units = [[Unit(layer, expert) for expert in range(count)] for layer, count in enumerate(experts)]
        self._pages = [array("i", [-1]) * count for count in experts]
        self._owner: list[Unit | None] = [None] * slots
        self._free = list(range(slots - 1, -1, -1))
        self._loading: dict[Unit, int] = {}
        self._live: list[dict[int, None]] = [{} for _ in experts]
        self._later: list[list[int]] = [[] for _ in experts]
        self._pinned: set[Unit] = set()
        self._guessed: dict[Unit, None] = {}
        """Loading or held, the oldest first."""
        self._unused: set[Unit] = set()
        """Read ahead and not needed since."""
        self._pins_at_most = slots if slots >= sum(experts) else slots - 1
        """As many units may be pinned: one slot is left for the others, if there are others."""

    def pages(self, layer: int) -> array[int]:
        """Expert → slot, -1 where it is not held or still loading: [experts] int32. The same object for good; only to be read."""
        return self._pages[layer]

    @property
    def owners(self) -> Sequence[Unit | None]:
        """Per slot the unit that it belongs to, held or loading."""
        return self._owner

    def need(self, layer: int, experts: Sequence[int], at_most: int | None = None) -> Need:
        """A visit to `layer` begins, which needs `experts`, each once, in the order in which it would like to have them.

        They are live until `done`, or `next_wave` if there were not slots for all. The loads, of which there are `at_most`, are the
        caller's to carry out.
        """
        self._policy.visit(layer, experts)
        self._later[layer].clear()
        return self._take(layer, experts, at_most)

    def more(self, layer: int, at_most: int) -> Need:
        """The same for the first of those units of the visit that had to wait; its other units stay live."""
        waiting = self._later[layer]
        need = self._take(layer, waiting[:at_most])
        self._later[layer] += waiting[at_most:]
        need.later.extend(self._units[layer][expert] for expert in waiting[at_most:])
        return need

    def release(self, layer: int, experts: Sequence[int]) -> None:
        """The visit under way has done with these of its units."""
        live, page = self._live[layer], self._pages[layer]
        released = [expert for expert in experts if expert in live]
        for expert in released:
            del live[expert]
        self._offer(layer, [expert for expert in released if page[expert] >= 0])

    def next_wave(self, layer: int) -> Need:
        """The same for those units of the visit that had to wait; its other units are no longer live.

        It may be that all have to wait again, though only while other layers are live or reads are under way.
        """
        later = self._later[layer].copy()
        self._release(layer)
        return self._take(layer, later)

    def done(self, layer: int) -> None:
        """The visit is over: nothing of the layer is live. Reads under way go on."""
        self._release(layer)
        if self._guessed:
            passed = [unit for unit in self._guessed if unit.layer == layer]
            for unit in passed:
                del self._guessed[unit]
            self._offer(layer, [unit.expert for unit in passed if unit not in self._loading])

    def arrived(self, unit: Unit) -> None:
        """The read of `unit` has ended well: its page can be used."""
        self._pages[unit.layer][unit.expert] = self._loading.pop(unit)
        if unit not in self._guessed and unit.expert not in self._live[unit.layer]:
            self._offer(unit.layer, [unit.expert])

    def failed(self, unit: Unit) -> None:
        """The read of `unit` has failed: its slot is free, and it is no longer live."""
        slot = self._loading.pop(unit)
        self._owner[slot] = None
        self._free.append(slot)
        self._live[unit.layer].pop(unit.expert, None)
        self._guessed.pop(unit, None)
        self._forget_guess(unit)
        self.tally.failures += 1

    def failed_ahead(self, unit: Unit) -> UnitLoad | None:
        """The same for a unit that was guessed. If it is live by now, it stays so, and has to be read once more: this load."""
        live = unit.expert in self._live[unit.layer]
        self.failed(unit)
        if not live:
            return None
        self._live[unit.layer][unit.expert] = None
        return self._load(unit)

    def pin(self, unit: Unit) -> None:
        """From when it is held (which this does not bring about) `unit` is not evicted. Raises ValueError if no slot would be left."""
        if unit not in self._pinned and len(self._pinned) == self._pins_at_most:
            raise ValueError(f"{len(self._owner)} slots cannot hold one more pinned unit beside the others")
        self._pinned.add(unit)
        self._policy.keep(unit.layer, [unit.expert])

    def unpin(self, unit: Unit) -> None:
        if unit in self._pinned:
            self._pinned.remove(unit)
            if self._pages[unit.layer][unit.expert] >= 0 and unit.expert not in self._live[unit.layer] and unit not in self._guessed:
                self._offer(unit.layer, [unit.expert])

    def guess(self, units: Iterable[Unit], at_most: int | None = None) -> list[UnitLoad]:
        """Loads of units that may be needed soon, the likeliest first: into free slots, and in place of what is worth less."""
        loads: list[UnitLoad] = []
        for unit in units:
            if len(loads) == at_most:
                break
            if self._pages[unit.layer][unit.expert] >= 0 or unit in self._loading:
                continue
            if not self._free:
                victim = self._policy.victim() if self._policy.worth(unit) else None
                if victim is None:
                    continue
                self._evict(victim)
            loads.append(self._load(unit))
            self._guessed[unit] = None
            self._unused.add(unit)
        self.tally.guessed += len(loads)
        return loads

    def _take(self, layer: int, experts: Sequence[int], at_most: int | None = None) -> Need:
        page, units, live = self._pages[layer], self._units[layer], self._live[layer]
        held = [expert for expert in experts if page[expert] >= 0]
        self._policy.keep(layer, held)
        live.update(dict.fromkeys(held))
        missing = [units[expert] for expert in experts if page[expert] < 0] if len(held) < len(experts) else []
        need = Need([units[expert] for expert in held], [], [unit for unit in missing if unit in self._loading], [])
        live.update(dict.fromkeys([unit.expert for unit in need.coming]))
        if self._unused:  # before room is made: what is needed is no longer a guess
            self._use_guesses((*need.held, *need.coming))
        for unit in missing:
            if unit in self._loading:
                continue
            if need.later or len(need.loads) == at_most or not self._has_room():
                need.later.append(unit)
            else:
                need.loads.append(self._load(unit))
                live[unit.expert] = None
        self._later[layer] = [unit.expert for unit in need.later]
        self.tally.hits += len(held)
        self.tally.misses += len(need.loads)
        self.tally.awaited += len(need.coming)
        return need

    def _release(self, layer: int) -> None:
        live = self._live[layer]
        if live:
            page = self._pages[layer]
            self._live[layer] = {}
            self._offer(layer, [expert for expert in live if page[expert] >= 0])
        self._later[layer].clear()

    def _offer(self, layer: int, experts: list[int]) -> None:
        if self._pinned:
            units = self._units[layer]
            experts = [expert for expert in experts if units[expert] not in self._pinned]
        if experts:
            self._policy.offer(layer, experts)

    def _has_room(self) -> bool:
        """Makes a slot free, if that can be."""
        if not self._free:
            victim = self._policy.victim() or self._oldest_guess()
            if victim is None:
                return False
            self._evict(victim)
        return True

    def _oldest_guess(self) -> Unit | None:
        return next((unit for unit in self._guessed if unit not in self._loading and unit not in self._pinned), None)

    def _evict(self, unit: Unit) -> None:
        page = self._pages[unit.layer]
        slot = page[unit.expert]
        page[unit.expert] = -1
        self._owner[slot] = None
        self._free.append(slot)
        self._guessed.pop(unit, None)
        if self._unused:
            self._forget_guess(unit)
        self.tally.evictions += 1

    def _load(self, unit: Unit) -> UnitLoad:
        slot = self._free.pop()
        self._owner[slot] = unit
        self._loading[unit] = slot
        return UnitLoad(unit, slot)

    def _use_guesses(self, units: Iterable[Unit]) -> None:
        for unit in units:
            if unit in self._unused:
                self._unused.remove(unit)
                self._guessed.pop(unit, None)
                self.tally.guessed_used += 1

    def _forget_guess(self, unit: Unit) -> None:
        if unit in self._unused:
            self._unused.remove(unit)
            self.tally.guessed_wasted += 1
