"""Prompts that were computed before, choices that part ways, and memory that does not suffice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.toy_stage import (
    Toy,
    expected,
    limits,
    request,
    serve,
)

# Prefixes and forks


def test_a_prompt_that_was_computed_is_found_again():
    toy = Toy(limits())
    serve(toy, request("a", range(1, 11), 2))
    serve(toy, request("b", range(1, 11), 2, seed=9))
    assert toy.scheduler.counters.cached_tokens == 8
    assert toy.chunks[-1].cached == 8


def test_an_answer_that_was_computed_is_found_again():
    toy = Toy(limits())
    serve(toy, first := request("a", [1, 2], 9))
    serve(toy, request("b", [1, 2, *expected(first, 0)[0]], 2))
    assert toy.scheduler.counters.cached_tokens == 8


def test_the_last_token_of_a_prompt_is_always_computed():
    toy = Toy(limits())
    serve(toy, request("a", range(1, 9), 1))
    serve(toy, request("b", range(1, 9), 1))
    assert toy.scheduler.counters.cached_tokens == 4


def test_another_beginning_is_no_prefix():
    toy = Toy(limits())
    serve(toy, request("a", [1, 2, 3, 4, 5, 6, 7, 8, 9], 1))
    serve(toy, request("b", [9, 2, 3, 4, 5, 6, 7, 8, 9], 1))
    assert toy.scheduler.counters.cached_tokens == 0


@pytest.mark.parametrize("length", range(1, 10))
def test_choices_share_the_prompt_and_part_ways_after_it(length: int):
    toy = Toy(limits(blocks=24))
    serve(toy, request("a", range(1, length + 1), 7, n=4))
    computed = sum(plan.rows for plan in toy.history)
    assert computed == length + 3 + 4 * 6
    assert len([copy for plan in toy.history for copy in plan.copies]) == 3


def test_choices_whose_first_is_gone_run_on_their_own():
    toy, r = Toy(limits()), request("a", range(1, 11), 4, n=3)
    toy.add(r)
    toy.send()
    toy.cancel("a", 0)
    toy.drain()
    assert [toy.said[r.id, c] for c in (1, 2)] == [expected(r, c)[0] for c in (1, 2)]


# Too little memory


def test_the_youngest_makes_room_and_says_the_same_in_the_end():
    toy = Toy(limits(blocks=4, slots=4))
    serve(toy, request("a", [1, 2], 10), request("b", [3, 4], 10), request("c", [5, 6], 10))
    assert toy.scheduler.counters.preemptions > 0


def test_a_preempted_sequence_is_opened_once():
    toy = Toy(limits(blocks=4))
    serve(toy, request("a", [1, 2], 10), request("b", [3, 4], 10))
    assert sorted(o.sequence for plan in toy.history for o in plan.opened) == [0, 1]
    assert any(plan.dropped for plan in toy.history)


def test_the_oldest_is_never_set_back_alone_at_the_pipe():
    toy = Toy(limits(blocks=4, slots=3))
    for name in "abc":
        toy.add(request(name, [ord(name) % 20], 12))
    toy.drain()
    assert next(iter(toy.ends)) == ("a", 0)


def test_a_forked_choice_waits_for_memory():
    toy = Toy(limits(blocks=3, block_tokens=4))
    serve(toy, request("a", range(1, 9), 4, n=3))


def test_nothing_is_found_again_without_a_prefix_cache():
    toy = Toy(replace(limits(), prefixes=False))
    serve(toy, first := request("a", range(1, 11), 2))
    serve(toy, request("b", range(1, 11), 2))
    assert toy.scheduler.counters.cached_tokens == 0
    assert [chunk.token for chunk in toy.chunks if chunk.request == "b" and chunk.token is not None] == expected(first, 0)[0]
