"""Whatever is needed, guessed, pinned, read and lost, in any order: a slot has one unit, and nothing in use is evicted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.weights.eviction import Eviction, LeastFrequent, LeastRecent
from shoal.weights.expected_use import ExpectedUse
from shoal.weights.residency import Need, UnitLoad, WeightResidency
from shoal.weights.unit import Unit

LAYERS, EXPERTS = 3, 5
POLICIES: list[Callable[[], Eviction]] = [LeastRecent, lambda: LeastFrequent(4), lambda: ExpectedUse([EXPERTS] * LAYERS, half_life=4)]

layers = st.integers(0, LAYERS - 1)
experts = st.lists(st.integers(0, EXPERTS - 1), min_size=1, max_size=EXPERTS, unique=True)
units = st.builds(Unit, layers, st.integers(0, EXPERTS - 1))
picks = st.integers(0, 1000)


class AnyResidency(RuleBasedStateMachine):
    @initialize(slots=st.integers(1, LAYERS * EXPERTS), policy=st.sampled_from(POLICIES))
    def begin(self, slots: int, policy: Callable[[], Eviction]) -> None:
        self.slots = slots
        self.policy = policy()
        self.residency = WeightResidency(slots, [EXPERTS] * LAYERS, self.policy)
        self.loading: dict[Unit, int] = {}
        self.held: dict[Unit, int] = {}
        self.live: dict[int, set[Unit]] = {}
        self.later: dict[int, list[Unit]] = {}
        self.pinned: set[Unit] = set()

    def take(self, layer: int, wanted: list[int], need: Need) -> None:
        coming_or_loaded = [*need.coming, *(load.unit for load in need.loads)]
        assert sorted([*need.held, *coming_or_loaded, *need.later]) == sorted(Unit(layer, expert) for expert in wanted)
        assert set(need.held) <= self.held.keys()
        assert set(need.coming) <= self.loading.keys()
        self.live[layer] = {*need.held, *coming_or_loaded}
        self.later[layer] = need.later
        self.begin_loads(need.loads)

    def begin_loads(self, loads: list[UnitLoad]) -> None:
        for unit, slot in loads:
            assert unit not in self.held and unit not in self.loading
            assert slot not in self.loading.values(), "the slot is being read into"
            occupant = next((other for other, place in self.held.items() if place == slot), None)
            if occupant is not None:
                assert occupant not in self.pinned
                assert all(occupant not in live for live in self.live.values())
                del self.held[occupant]
            self.loading[unit] = slot

    @precondition(lambda self: len(self.live) < LAYERS)
    @rule(layer=layers, wanted=experts, at_most=st.none() | st.integers(0, EXPERTS))
    def need(self, layer: int, wanted: list[int], at_most: int | None) -> None:
        if layer not in self.live:
            need = self.residency.need(layer, wanted, at_most)
            assert at_most is None or len(need.loads) <= at_most
            self.take(layer, wanted, need)

    @rule(layer=layers, at_most=st.integers(0, EXPERTS))
    def more(self, layer: int, at_most: int) -> None:
        if layer in self.live:
            before = self.live[layer]
            need = self.residency.more(layer, at_most)
            assert len(need.loads) <= at_most
            self.take(layer, [unit.expert for unit in self.later[layer]], need)
            self.live[layer] |= before

    @rule(layer=layers, which=experts)
    def release(self, layer: int, which: list[int]) -> None:
        if layer in self.live:
            self.residency.release(layer, which)
            self.live[layer] -= {Unit(layer, expert) for expert in which}

    @rule(layer=layers)
    def next_wave(self, layer: int) -> None:
        if self.later.get(layer):
            wanted = [unit.expert for unit in self.later[layer]]
            self.live[layer] = set()
            self.take(layer, wanted, self.residency.next_wave(layer))

    @precondition(lambda self: self.live)
    @rule(pick=picks)
    def done(self, pick: int) -> None:
        layer = list(self.live)[pick % len(self.live)]
        self.residency.done(layer)
        del self.live[layer], self.later[layer]

    @precondition(lambda self: self.loading)
    @rule(pick=picks)
    def arrived(self, pick: int) -> None:
        unit = list(self.loading)[pick % len(self.loading)]
        self.residency.arrived(unit)
        self.held[unit] = self.loading.pop(unit)

    @precondition(lambda self: self.loading)
    @rule(pick=picks)
    def failed(self, pick: int) -> None:
        unit = list(self.loading)[pick % len(self.loading)]
        slot = self.loading.pop(unit)
        self.residency.failed(unit)
        for live in self.live.values():
            live.discard(unit)
        assert self.residency.owners[slot] is None

    @rule(unit=units)
    def pin(self, unit: Unit) -> None:
        if len(self.pinned) < self.slots - 1:
            self.residency.pin(unit)
            self.pinned.add(unit)

    @rule(unit=units)
    def unpin(self, unit: Unit) -> None:
        self.residency.unpin(unit)
        self.pinned.discard(unit)

    @rule(guesses=st.lists(units, max_size=6))
    def guess(self, guesses: list[Unit]) -> None:
        loads = self.residency.guess(guesses)
        assert {load.unit for load in loads} <= set(guesses)
        self.begin_loads(loads)

    @precondition(lambda self: any(self.later.values()))
    @rule()
    def waves_end(self) -> None:
        """With the other layers done and reads carried out, every wave takes something."""
        layer = next(layer for layer, later in self.later.items() if later)
        for other in [other for other in self.live if other != layer]:
            self.residency.done(other)
            del self.live[other], self.later[other]
        while self.later[layer]:
            before = len(self.later[layer])
            for unit in list(self.loading):
                self.residency.arrived(unit)
                self.held[unit] = self.loading.pop(unit)
            self.next_wave(layer)
            assert len(self.later[layer]) < before

    @invariant()
    def the_page_tables_are_true(self) -> None:
        for layer in range(LAYERS):
            expected = [self.held.get(Unit(layer, expert), -1) for expert in range(EXPERTS)]
            assert list(self.residency.pages(layer)) == expected

    @invariant()
    def a_slot_has_one_unit(self) -> None:
        owners: list[Unit | None] = [None] * self.slots
        for unit, slot in [*self.held.items(), *self.loading.items()]:
            assert owners[slot] is None
            owners[slot] = unit
        assert list(self.residency.owners) == owners

    @invariant()
    def guesses_are_accounted_for(self) -> None:
        tally = self.residency.tally
        assert 0 <= tally.guessed_used + tally.guessed_wasted <= tally.guessed

    def teardown(self) -> None:
        """At rest the policy has every unit that is held, once."""
        if not hasattr(self, "residency"):
            return
        for unit in self.loading:
            self.residency.arrived(unit)
        for layer in range(LAYERS):
            self.residency.done(layer)
        for unit in self.pinned:
            self.residency.unpin(unit)
        held = [unit for unit in self.residency.owners if unit is not None]
        offered: list[Unit] = []
        while (victim := self.policy.victim()) is not None:
            offered.append(victim)
        assert sorted(offered) == sorted(held)


TestAnyResidency = pytest.mark.slow(AnyResidency.TestCase)
TestAnyResidency.settings = settings(stateful_step_count=40, max_examples=100)
