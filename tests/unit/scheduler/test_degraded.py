"""Rows that a stage computed without an expert are counted for their sequence, in all its chunks from then on."""

from __future__ import annotations

import msgspec

from shoal.scheduler.plan import StepResult
from tests.support.toy_stage import Toy, asking, limits


def step(toy: Toy, degraded: dict[int, int]) -> None:
    """One step, of which so many rows of each sequence lack an expert."""
    assert toy.send()
    toy.run()
    toy.results[-1] = msgspec.structs.replace(toy.results[-1], degraded=degraded)
    toy.take()


def test_chunks_say_how_many_so_far() -> None:
    toy = Toy(limits(16))
    first, second = asking(0, range(1, 4)), asking(1, range(1, 3))
    for request in (first, second):
        toy.add(request)
    step(toy, {0: 3})
    step(toy, {})
    step(toy, {0: 1, 1: 1})
    tokens = [chunk for chunk in toy.chunks if chunk.token is not None and chunk.choice == 0]
    told = {request.id: [chunk.degraded for chunk in tokens if chunk.request == request.id] for request in (first, second)}
    assert told == {first.id: [3, 3, 4], second.id: [0, 0, 1]}
    assert toy.scheduler.counters.degraded_tokens == 5


def test_a_sequence_that_is_gone_is_counted_all_the_same() -> None:
    toy = Toy(limits(16))
    toy.scheduler.degraded(StepResult(0, [], [], degraded={99: 2}))
    assert toy.scheduler.counters.degraded_tokens == 2
