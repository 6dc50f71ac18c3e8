"""Rows that experts computed are counted for as long as the store lives, whatever becomes of their blocks."""

from __future__ import annotations

import numpy as np

from shoal.executor.base import BlockPart, Packed, WeightBlock
from shoal.executor.store import RowCounts, WeightStore, blocks_of


class Experts:
    nbytes = 1

    def __init__(self) -> None:
        self.counts: RowCounts = np.zeros(2, np.uint64)

    def run(self, *rows: int) -> None:
        self.counts = self.counts + np.array(rows, np.uint64)


class Plain:
    nbytes = 1


def put(store: WeightStore, layer: int, packed: Packed) -> None:
    store.put(WeightBlock(layer, BlockPart.ATTENTION), Plain())
    store.put(WeightBlock(layer, BlockPart.FEED_FORWARD), packed)


def counted(store: WeightStore) -> dict[int, list[int]]:
    return {layer: rows.tolist() for layer, rows in store.expert_rows.items()}


def test_layers_without_experts_are_not_counted() -> None:
    store = WeightStore()
    put(store, 0, Plain())
    put(store, 1, Experts())
    assert counted(store) == {1: [0, 0]}


def test_a_layer_that_is_freed_and_loaded_again_goes_on() -> None:
    store = WeightStore()
    for rows in ((3, 0), (0, 2), (1, 1)):
        put(store, 4, experts := Experts())
        before = counted(store)
        experts.run(*rows)
        assert counted(store)[4] == [a + b for a, b in zip(before[4], rows, strict=True)]
        running = counted(store)
        store.keep(blocks_of(range(7, 9), 10))
        assert counted(store) == running


def test_a_layer_that_stays_is_counted_once() -> None:
    store = WeightStore()
    put(store, 4, experts := Experts())
    experts.run(3, 1)
    for _ in range(3):
        store.keep(blocks_of(range(4, 5), 10))
        assert counted(store) == {4: [3, 1]}


def test_what_was_read_stays_as_it_was_read() -> None:
    store = WeightStore()
    put(store, 0, experts := Experts())
    store.keep([])
    put(store, 0, experts)
    read = store.expert_rows
    experts.run(1, 1)
    assert read[0].tolist() == [0, 0]
