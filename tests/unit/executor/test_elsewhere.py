"""Layers with experts elsewhere are runs of their own, whatever the store below makes of its layers."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal.executor.base import BlockPart, Floats, Wave, WeightBlock
from shoal.executor.elsewhere import Elsewhere
from shoal.executor.expert_split import Experts, RemoteExperts, Split

LAYERS = st.sets(st.integers(0, 11))
HIDDEN = np.zeros((1, 4), np.float32)


class Cellar:
    """A store some of whose layers' experts come in two waves, and which cuts its layers before each of `cuts`."""

    nbytes, waited = 17, 0.25

    def __init__(self, waved: set[int], cuts: set[int]) -> None:
        self.waved, self.cuts = waved, cuts
        self.noted: list[Any] = []

    def runs(self, layers: range) -> list[range]:
        cuts = self.cuts | self.waved | {layer + 1 for layer in self.waved}
        bounds = [layers.start, *sorted(cuts & set(layers[1:])), layers.stop]
        return [range(a, b) for a, b in pairwise(bounds) if a < b]

    def apart(self, layer: int) -> bool:
        return layer in self.waved

    def elsewhere(self, layer: int) -> None:
        return None

    def lease(self, block: WeightBlock) -> Any:
        self.noted.append(block)
        return "a block"

    def release(self, layers: range) -> None:
        self.noted.append(layers)

    def waves(self, layer: int, needed: Sequence[int], hidden: Floats) -> Generator[Wave]:
        self.noted.append(list(needed))
        try:
            yield list(range(0, len(needed), 2))
            yield list(range(1, len(needed), 2))
        finally:
            self.noted.append("closed")


def over(cellar: Cellar, away: set[int]) -> Elsewhere:
    return Elsewhere(cellar, remote({layer: frozenset({1, 2}) for layer in away}))


def remote(only: Experts, also: Experts | None = None) -> RemoteExperts:
    return RemoteExperts(only, also or {}, Split(1, 0.0))


@given(LAYERS, LAYERS, LAYERS, st.integers(0, 11), st.integers(0, 12))
def test_every_layer_is_in_one_run_and_alone_where_experts_are_elsewhere(
    waved: set[int], cuts: set[int], away: set[int], start: int, count: int
) -> None:
    cellar, layers = Cellar(waved, cuts), range(start, min(start + count, 12))
    runs = over(cellar, away).runs(layers)
    assert [layer for run in runs for layer in run] == list(layers)
    assert all(runs)
    assert all(len(run) == 1 for run in runs if away & set(run))
    whole = {layer: run for run in cellar.runs(layers) for layer in run}
    assert all(set(run) <= set(whole[run[0]]) for run in runs)
    ends = sorted(away | {layer - 1 for layer in away} | {run[-1] for run in whole.values()})
    assert all(run[-1] in ends for run in runs)  # no cut more than is needed


@given(LAYERS, LAYERS)
def test_a_layer_is_apart_where_it_was_or_experts_are_elsewhere(waved: set[int], away: set[int]) -> None:
    store = over(Cellar(waved, set()), away)
    assert [store.apart(layer) for layer in range(12)] == [layer in waved | away for layer in range(12)]
    found = [store.elsewhere(layer) for layer in range(12)]
    assert [layer.only if layer else set() for layer in found] == [{1, 2} if layer in away else set() for layer in range(12)]


@given(st.booleans(), st.booleans(), st.lists(st.integers(0, 9), unique=True))
def test_what_is_here_comes_in_the_waves_of_the_store_or_at_once(waved: bool, away: bool, needed: list[int]) -> None:
    cellar = Cellar({3} if waved else set(), set())
    waves = list(over(cellar, {3} if away else set()).waves(3, sorted(needed), HIDDEN))
    assert sorted(at for wave in waves for at in wave) == list(range(len(needed)))
    assert len(waves) == (2 if waved else 1)
    assert cellar.noted == ([sorted(needed), "closed"] if waved else [])


def test_waves_that_are_closed_early_close_those_of_the_store() -> None:
    cellar = Cellar({3}, set())
    waves = over(cellar, {3}).waves(3, [1, 2, 5], HIDDEN)
    assert next(waves) == [0, 2]
    waves.close()
    assert cellar.noted == [[1, 2, 5], "closed"]


def test_a_layer_that_has_nothing_elsewhere_is_none_of_those() -> None:
    store = Elsewhere(Cellar(set(), set()), remote({1: frozenset(), 2: frozenset({0})}, {3: frozenset({5}), 4: frozenset()}))
    assert store.runs(range(5)) == [range(2), range(2, 3), range(3, 4), range(4, 5)]
    assert not store.apart(1) and store.elsewhere(1) is store.elsewhere(9) is None and store.apart(3)


def test_experts_may_be_replaced_between_steps() -> None:
    store = over(Cellar(set(), set()), {1})
    assert store.runs(range(3)) == [range(1), range(1, 2), range(2, 3)]
    store.remote = remote({})
    assert store.runs(range(3)) == [range(3)]
    assert not store.apart(1)


def test_blocks_are_those_of_the_store() -> None:
    cellar = Cellar(set(), set())
    store, block = over(cellar, {1}), WeightBlock(1, BlockPart.FEED_FORWARD)
    assert (store.nbytes, store.waited) == (17, 0.25) and store.lease(block) == "a block"
    store.release(range(1, 2))
    assert cellar.noted == [block, range(1, 2)]
