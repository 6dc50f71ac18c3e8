"""Experts come into their block before they run, in whatever places; those that are sure to be needed are read before."""

from __future__ import annotations

import errno
import threading
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import WeightsUnreadable
from shoal.executor import expert_slots
from shoal.executor.base import Wave
from shoal.executor.expert_slots import ExpertSlots
from shoal.executor.packed_layers import PackedLayers
from shoal.weights.activity import Activity
from shoal.weights.packed_file import PackedUnit

PAGE = 4096
Expert = tuple[int, int]
"""A layer and a number."""

_ROWS = np.zeros((8, 4), np.float32)
"""Of a step that has enough of them for experts to give up their places."""


class OneFile:
    """An expert's bytes all say which layer and which expert it is."""

    def __init__(self, layer: int, read: list[Expert], broken: set[Expert]) -> None:
        self.path = Path(f"layer-{layer}")
        self._layer, self._read, self._broken, self._changing = layer, read, broken, threading.Lock()

    def read_into(self, offset: int, into: memoryview) -> int:
        expert = (self._layer, offset // PAGE)
        with self._changing:
            self._read.append(expert)
        if expert in self._broken:
            raise OSError(errno.EIO, "Input/output error")
        into[:] = bytes(expert) * (into.nbytes // 2)
        return into.nbytes


class Files:
    def __init__(self, layers: int) -> None:
        self.read: list[Expert] = []
        self.broken: set[Expert] = set()
        self.damaged: list[int] = []
        self._sources = [OneFile(layer, self.read, self.broken) for layer in range(layers)]

    def unreadable(self, layer: int) -> None:
        self.damaged.append(layer)

    def unit(self, layer: int, name: str) -> PackedUnit:
        return PackedUnit(PAGE * int(name.split()[1]), PAGE, 0, {}, {})

    def source(self, layer: int) -> OneFile:
        return self._sources[layer]

    def verified(self, layer: int, name: str, memory: memoryview) -> memoryview:
        return memory

    def maker(self, layer: int, name: str, memory: memoryview) -> Files:
        self._made = memory
        return self

    def expert(self, number: int) -> memoryview:
        return self._made


class Block:
    def __init__(self) -> None:
        self.placed: dict[int, memoryview] = {}

    def place(self, expert: int, mlp: memoryview | None) -> None:
        self.placed.pop(expert, None)
        if mlp is not None:
            self.placed[expert] = mlp


class Slots:
    def __init__(self, slots: int, counts: Sequence[int]) -> None:
        self.files = Files(len(counts))
        self.activity = Activity()
        self.slots = ExpertSlots(cast(PackedLayers, self.files), slots, PAGE, counts, self.activity)
        self.block = Block()

    def waves(self, layer: int, needed: Sequence[int], shared: bool = False) -> Generator[Wave]:
        return self.slots.waves(layer, cast(Any, self.block), needed, shared, _ROWS)

    def visit(self, layer: int, needed: Sequence[int], shared: bool = False) -> list[Wave]:
        """The waves, after a look at what is in the block for each."""
        went: set[int] = set()
        waves: list[Wave] = []
        with closing(self.waves(layer, needed, shared)) as running:
            for wave in running:
                assert not went.intersection(wave), "an expert runs twice"
                assert wave == sorted(wave)
                went.update(wave)
                for place in wave:
                    if place < len(needed):
                        memory = self.block.placed[needed[place]]
                        assert bytes(memory) == bytes((layer, needed[place])) * (PAGE // 2), "it is another one's memory"
                waves.append(wave)
        assert went == set(range(len(needed) + shared))
        assert not self.block.placed
        return waves

    def steps(self, count: int, layers: int, needed: Sequence[int]) -> None:
        for _ in range(count):
            for layer in range(layers):
                self.visit(layer, needed)


@pytest.fixture
def everything() -> list[int]:
    return list(range(12))


def test_a_few_are_read_when_they_are_needed(everything: list[int]):
    held = Slots(8, [12, 12])
    assert held.visit(0, [3, 7]) != []
    assert sorted(held.files.read) == [(0, 3), (0, 7)]
    assert held.visit(0, [3, 7], shared=True) == [[0, 1, 2]]
    assert len(held.files.read) == 2


def test_steps_that_need_everything_read_the_next_layer_before_it_is_reached(everything: list[int]):
    streamed = Slots(16, [12, 12, 12])
    streamed.steps(4, 3, everything)
    tally = streamed.slots.tally
    guessed, wasted = tally.guessed, tally.guessed_wasted
    streamed.steps(2, 3, everything)
    assert tally.guessed > guessed + 12
    assert tally.guessed_wasted == wasted


def test_as_many_stay_in_each_layer_until_steps_need_less(everything: list[int]):
    streamed = Slots(16, [12, 12, 12])
    streamed.steps(4, 3, everything)
    pages = [streamed.slots._residency.pages(layer) for layer in range(3)]
    assert all(sum(slot >= 0 for slot in held) >= 4 for held in pages)
    for expert in (1, 5, 9):  # nothing of what the visit before needed
        streamed.visit(0, [expert])
    assert not streamed.slots._kept
    streamed.visit(0, everything)
    assert all(slot >= 0 for slot in pages[0]), "one layer may have all places again"


def test_each_expert_gives_up_its_place_when_it_has_run(everything: list[int]):
    streamed = Slots(14, [12, 12, 12])
    streamed.steps(2, 3, everything)
    with closing(streamed.waves(0, everything)) as waves:
        before: set[int] = set()
        for wave in waves:
            assert not before.intersection(streamed.block.placed)
            before.update(everything[place] for place in wave)
    assert before == set(everything)


def test_as_much_is_kept_from_step_to_step_as_there_is_room_for(everything: list[int]):
    """A loop over all of it, in which LRU would read everything: what does not fit is read, and a few for the places of what runs and
    of what is read ahead."""
    streamed = Slots(30, [12, 12, 12])
    streamed.steps(8, 3, everything)
    before = streamed.activity.sums.reads
    streamed.steps(4, 3, everything)
    assert (streamed.activity.sums.reads - before) / 4 < 24


def test_steps_of_few_rows_read_nothing_ahead(everything: list[int]):
    streamed = Slots(16, [12, 12, 12])
    streamed.steps(3, 3, everything)
    for layer in (0, 1, 2):
        streamed.visit(layer, [layer])
    before = streamed.slots.tally.guessed
    for step in range(3):
        for layer in (0, 1, 2):
            streamed.visit(layer, [step, step + 3])
    assert streamed.slots.tally.guessed == before


def test_what_was_only_read_ahead_and_failed_is_read_again(everything: list[int]):
    streamed = Slots(16, [12, 12, 12])
    streamed.steps(2, 3, everything)
    streamed.visit(0, everything)
    streamed.files.broken.update((1, expert) for expert in everything)
    streamed.visit(0, everything)
    failed = streamed.slots.tally.failures
    streamed.files.broken.clear()
    streamed.visit(2, everything)
    assert streamed.slots.tally.failures >= failed
    streamed.visit(1, everything)


@pytest.mark.parametrize("steps", [0, 2])
def test_a_read_that_fails_ends_the_visit_that_needs_it(steps: int, everything: list[int]):
    streamed = Slots(14, [12, 12, 12])
    streamed.steps(steps, 3, everything)
    streamed.files.broken.update((layer, expert) for layer in range(3) for expert in everything)
    with pytest.raises(WeightsUnreadable, match="Input/output error"):
        streamed.steps(1, 3, everything)
    assert not streamed.block.placed
    streamed.files.broken.clear()
    streamed.steps(1, 3, everything)


def test_what_was_done_is_recorded(everything: list[int]):
    streamed = Slots(14, [12, 12, 12])
    streamed.steps(2, 3, everything)
    sums = streamed.activity.sums
    assert sums.reads >= 36
    assert sums.nbytes == sums.reads * PAGE
    assert sums.computing > 0
    assert sums.waiting > 0
    assert sums.reading > 0


@settings(max_examples=60, deadline=None)
@given(
    slots=st.integers(2, 30),
    together=st.integers(1, 5),
    steps=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=10, unique=True) | st.just(list(range(10))), min_size=1, max_size=8),
    shared=st.booleans(),
)
def test_whatever_steps_need_is_there_when_it_runs(slots: int, together: int, steps: list[list[int]], shared: bool):
    streamed = Slots(slots, [10, 0, 10, 10])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expert_slots, "TOGETHER", together)
        for needed in steps:
            for layer in (0, 2, 3):
                streamed.visit(layer, sorted(needed), shared)
    streamed.slots.close()


def test_many_steps_of_many_rows_end(everything: list[int]):
    rng = np.random.default_rng(0)
    streamed = Slots(5, [12, 12])
    for _ in range(30):
        for layer in (0, 1):
            streamed.visit(layer, sorted(rng.permutation(12)[:11].tolist()))
