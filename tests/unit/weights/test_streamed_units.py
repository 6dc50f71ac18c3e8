"""Units of a file in fewer slots than there are, read and read ahead by threads: what a step computes with is always the right unit."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.weights.eviction import LeastRecent
from shoal.weights.expected_use import ExpectedUse
from shoal.weights.reader import Arrival, Reader
from shoal.weights.residency import Need, UnitLoad, WeightResidency
from shoal.weights.slot_memory import SlotMemory
from shoal.weights.unit import Unit
from tests.unit.weights.faulty_source import FaultySource

LAYERS, EXPERTS, SIZE = 3, 6, 4096
FILE = b"".join(bytes([unit]) * SIZE for unit in range(LAYERS * EXPERTS))


def offset(unit: Unit) -> int:
    return (unit.layer * EXPERTS + unit.expert) * SIZE


class Streamed:
    def __init__(self, slots: int, residency: WeightResidency, source: FaultySource, reader: Reader[UnitLoad]) -> None:
        self.memory = SlotMemory(slots, SIZE)
        self.residency = residency
        self.source = source
        self.reader = reader
        self.lost: set[Unit] = set()

    def read(self, loads: list[UnitLoad]) -> None:
        for load in loads:
            self.reader.submit(self.source, offset(load.unit), self.memory.view(load.slot), load)

    def ended(self, ends: list[Arrival[UnitLoad]]) -> None:
        for (unit, _), error in ends:
            if error is None:
                self.residency.arrived(unit)
            else:
                self.residency.failed(unit)
                self.lost.add(unit)

    def compute(self, need: Need) -> None:
        """Everything of a wave, when it is there; what could not be read is missing."""
        self.read(need.loads)
        wanted = {*need.held, *need.coming, *(load.unit for load in need.loads)}
        while any(self.residency.pages(unit.layer)[unit.expert] < 0 for unit in wanted - self.lost):
            self.ended(self.reader.wait())
        for unit in wanted - self.lost:
            slot = self.residency.pages(unit.layer)[unit.expert]
            assert bytes(self.memory.view(slot)) == FILE[offset(unit) : offset(unit) + SIZE]

    def step(self, rng: random.Random) -> None:
        for layer in range(LAYERS):
            self.lost.clear()
            need = self.residency.need(layer, rng.sample(range(EXPERTS), rng.randint(1, EXPERTS)))
            ahead = [Unit((layer + 1) % LAYERS, expert) for expert in rng.sample(range(EXPERTS), 2)]
            self.read(self.residency.guess(ahead))
            self.compute(need)
            while need.later:
                if not any((need := self.residency.next_wave(layer))[:3]):
                    self.ended(self.reader.wait())  # guesses have the slots
                self.compute(need)
            self.residency.done(layer)


@settings(max_examples=30)
@given(st.integers(1, LAYERS * EXPERTS), st.integers(0, 1 << 20), st.sampled_from([None, 1000]), st.sets(st.integers(0, 17), max_size=3))
def test_what_a_step_computes_with_is_what_the_file_has(slots: int, seed: int, at_once: int | None, broken: set[int]):
    source = FaultySource(FILE, at_once, broken=[unit * SIZE for unit in broken])
    policy = ExpectedUse([EXPERTS] * LAYERS) if seed % 2 else LeastRecent()
    with Reader[UnitLoad](3) as reader:
        streamed = Streamed(slots, WeightResidency(slots, [EXPERTS] * LAYERS, policy), source, reader)
        rng = random.Random(seed)
        for _ in range(6):
            streamed.step(rng)
        while reader.outstanding:
            streamed.ended(reader.wait())
    streamed.memory.close()
