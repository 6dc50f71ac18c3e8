"""Rows that a stage computed without an expert are counted for their sequence, in all its chunks from then on."""

from __future__ import annotations

import msgspec

from shoal.scheduler.plan import StepResult
from tests.support.toy_stage import Toy, asking, limits, request


def step(toy: Toy, degraded: dict[int, int]) -> None:
    """One step, of which so many rows of each sequence lack an expert."""
    assert toy.send()
    toy.run()
    toy.results[-1] = msgspec.structs.replace(toy.results[-1], degraded=degraded)
    toy.take()


def test_chunks_say_how_many_so_far() -> None:
    toy = Toy(limits(16))
    first, second = asking(0, range(1, 4)), asking(1, range(1, 3))
    for asked in (first, second):
        toy.add(asked)
    step(toy, {0: 3})
    step(toy, {})
    step(toy, {0: 1, 1: 1})
    tokens = [chunk for chunk in toy.chunks if chunk.token is not None and chunk.choice == 0]
    told = {asked.id: [chunk.degraded for chunk in tokens if chunk.request == asked.id] for asked in (first, second)}
    assert told == {first.id: [3, 3, 4], second.id: [0, 0, 1]}
    assert toy.scheduler.counters.degraded_tokens == 5


def test_a_sequence_that_is_gone_is_counted_all_the_same() -> None:
    toy = Toy(limits(16))
    toy.scheduler.degraded(StepResult(0, [], [], degraded={99: 2}))
    assert toy.scheduler.counters.degraded_tokens == 2


def test_others_do_not_find_what_lacks_an_expert() -> None:
    """In the prefix cache: their answers would say nothing of it."""
    found = []
    for degraded in ({}, {0: 1}):
        toy = Toy(limits(64))
        for number in range(2):
            toy.add(request(f"r{number}", range(1, 40)))
            for _ in range(20):
                toy.fill()
                toy.run()
                if toy.results and not number:
                    toy.results[-1] = msgspec.structs.replace(toy.results[-1], degraded=degraded)
                toy.take()
        found.append(toy.scheduler.counters.cached_tokens)
    assert found[0] > 0 == found[1]
