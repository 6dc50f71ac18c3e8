"""Micro-batches of unequal prompts hold what they can and are about equally long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.scheduler.batching import Batching, batched

prompts = st.lists(st.integers(1, 500), max_size=60)
count = st.integers(1, 8)


@given(lengths=prompts, batches=count, most=st.integers(1, 12), tokens=st.integers(1, 3000), growth=st.integers(0, 60))
def test_nothing_is_lost_and_nothing_waits_that_a_batch_could_hold(lengths: list[int], batches: int, most: int, tokens: int, growth: int):
    made = batched(lengths, batches, most, tokens, growth)
    assert sorted(request for part in (*made.batches, made.waiting) for request in part) == list(range(len(lengths)))
    assert len(made.batches) <= batches
    assert all(made.batches)

    def held(batch: list[int]) -> bool:
        return len(batch) <= most and sum(lengths[request] + growth for request in batch) <= tokens

    assert all(held(batch) for batch in made.batches)
    for request in made.waiting:
        assert not any(held([*batch, request]) for batch in made.batches)
        assert len(made.batches) == batches or not held([request])


@given(lengths=prompts, batches=count)
def test_batches_differ_by_one_prompt_at_most(lengths: list[int], batches: int):
    made = batched(lengths, batches, most=len(lengths), tokens=sum(lengths), growth=0)
    assert not made.waiting
    sums = [sum(lengths[request] for request in batch) for batch in made.batches]
    if len(made.batches) == batches:
        assert max(sums) - min(sums) <= max(lengths)


@given(lengths=prompts, batches=count, most=st.integers(1, 12))
def test_equal_requests_fill_batches_evenly(lengths: list[int], batches: int, most: int):
    made = batched([7] * len(lengths), batches, most, 10_000, 5)
    sizes = [len(batch) for batch in made.batches]
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert sum(sizes) == min(len(lengths), batches * most)


def test_a_batch_that_is_not_full_is_not_forgotten():
    assert batched([5, 9], batches=3, most=4, tokens=100, growth=1) == Batching([[1], [0]], [])


def test_a_request_goes_where_it_fits_although_another_batch_is_shorter():
    """The shortest batch has as many requests as it may."""
    assert batched([9, 2, 2, 1], batches=2, most=2, tokens=100, growth=0) == Batching([[0, 3], [1, 2]], [])


def test_what_is_too_long_waits():
    assert batched([9, 30, 4], batches=2, most=2, tokens=20, growth=3) == Batching([[0], [2]], [1])


def test_nothing_comes_of_nothing():
    assert batched([], batches=2, most=2, tokens=20, growth=3) == Batching([], [])
