"""Weights by blocks: a stage leases those of the layers that it runs, and no others."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from shoal.errors import LocalProtocolError
from shoal.executor.base import BlockPart, Packed, WeightBlock
from shoal.executor.stage import StageExecutor
from shoal.executor.store import WeightStore, blocks_of
from shoal.request import SamplingParams
from shoal.scheduler.plan import Chunk, Opened, StepPlan
from shoal.testing import toy

ATTENTION, FEED_FORWARD = BlockPart.ATTENTION, BlockPart.FEED_FORWARD


@dataclass(frozen=True)
class Sized:
    nbytes: int


def test_the_head_comes_with_the_last_layer() -> None:
    assert blocks_of(range(1, 2), 3) == [WeightBlock(1, ATTENTION), WeightBlock(1, FEED_FORWARD)]
    assert blocks_of(range(2, 3), 3) == [WeightBlock(2, ATTENTION), WeightBlock(2, FEED_FORWARD), WeightBlock(3, BlockPart.HEAD)]
    assert blocks_of(range(2, 2), 3) == []


def test_what_is_put_is_leased_until_it_is_freed() -> None:
    store = WeightStore()
    first, second = WeightBlock(0, ATTENTION), WeightBlock(1, FEED_FORWARD)
    store.put(first, Sized(5))
    store.put(second, Sized(7))
    assert (store.nbytes, store.lease(first), store.lease(second)) == (12, Sized(5), Sized(7))
    store.keep([second, WeightBlock(9, ATTENTION)])
    assert store.nbytes == 7
    with pytest.raises(LocalProtocolError, match="the weights of layer 0, attention, are not here"):
        store.lease(first)


class Told(WeightStore):
    """A store that tells what was leased."""

    def __init__(self) -> None:
        super().__init__()
        self.leased: set[int] = set()

    def lease(self, block: WeightBlock) -> Packed:
        self.leased.add(block.layer)
        return super().lease(block)


def stage(held: range, layers: int = 6) -> tuple[StageExecutor, Told]:
    """A stage of all layers, of which only some are in the store."""
    store, weights = Told(), toy.ToyWeights(layers)
    runtime = toy.make_runtime(weights, 0)
    for block in blocks_of(held, layers):
        store.put(block, runtime.pack(weights, block))
    runtime.open(4)
    return StageExecutor(weights.spec, range(layers), runtime, store, 4, {}, weights), store


def test_a_span_leases_the_layers_in_it_alone() -> None:
    """Any span of layers that begins with the tokens, wherever it ends."""
    executor, store = stage(range(4))
    executor.run(StepPlan(0, [], [], [], [], [Chunk(1, 0, [4, 5, 6], [0], False)], [(0, 3)]), None)
    assert store.leased == {0, 1, 2}
    executor.run(StepPlan(1, [], [], [], [], [Chunk(1, 3, [7], [], False)], [(0, 4)]), None)
    assert store.leased == {0, 1, 2, 3}


def test_a_step_that_lacks_weights_says_which() -> None:
    executor, _ = stage(range(4))
    opened = [Opened(1, SamplingParams(temperature=0), [], [])]
    with pytest.raises(LocalProtocolError, match="layer 4, attention"):
        executor.run(StepPlan(0, opened, [], [], [], [Chunk(1, 0, [4], [0], True)]), None)
    executor, store = stage(range(6))
    assert executor.run(StepPlan(0, opened, [], [], [], [Chunk(1, 0, [4], [0], True)]), None).sampled
    assert store.leased >= set(range(6))
