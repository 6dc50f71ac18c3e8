"""Draws that are put off."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import toy_stage
from tests.support.toy_stage import (
    Toy,
    ToyStage,
    assert_right,
    limits,
    request,
)


def put_off(toy: Toy, which: int) -> None:
    """Of the last result, draws whose bit is set did not come."""
    toy.results.append(toy_stage.put_off(toy.results.pop(), which))


def test_a_draw_that_is_put_off_is_asked_for_again():
    toy, r = Toy(limits()), request("a", [1, 2, 3, 4], 3)
    toy.add(r)
    for _ in range(3):
        toy.send()
        toy.run()
        put_off(toy, 1)
        assert toy.take() == []
    assert [(c.position, c.tokens, c.sample) for plan in toy.history for c in plan.chunks] == [
        (0, [1, 2, 3, 4], True),
        (3, [4], True),
        (3, [4], True),
    ]
    toy.drain()
    assert_right(toy, r)


def test_others_draw_while_one_is_put_off():
    toy, a, b = Toy(limits()), request("a", [1], 3), request("b", [2, 3], 3)
    toy.add(a)
    toy.add(b)
    for _ in range(3):
        toy.send()
        toy.run()
        put_off(toy, 1 if toy.plans or toy.history[-1].chunks[0].sequence == 0 else 2)
        toy.take()
    assert (len(toy.said["a", 0]), len(toy.said["b", 0])) == (0, 3)
    toy.drain()
    assert_right(toy, a, b)


def test_a_draw_that_is_put_off_takes_no_block():
    toy, a, b = Toy(limits(blocks=4)), request("a", range(1, 9), 3), request("b", range(11, 19), 3)
    toy.add(a)
    toy.add(b)
    toy.send()
    toy.run()
    put_off(toy, 3)
    toy.take()
    assert toy.scheduler.pool.available == 0  # both prompts fill their blocks
    toy.send()
    assert [c.position for c in toy.history[-1].chunks] == [7, 7]
    assert toy.scheduler.counters.preemptions == 0
    toy.drain()
    assert_right(toy, a, b)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 9), st.integers(1, 2)), min_size=1, max_size=5),
    st.integers(9, 24),
    st.integers(1, 3),
    st.sampled_from([0, 1, 5]),
    st.lists(st.tuples(st.sampled_from(["send", "run", "take", "rewind"]), st.integers(0, 7)), max_size=150),
)
def test_put_off_draws_change_nothing_that_is_said(
    shapes: list[tuple[int, int, int]], blocks: int, depth: int, drafts: int, happenings: list[tuple[str, int]]
):
    toy = Toy(limits(blocks=blocks, depth=depth, drafts=drafts))
    asked = [request(f"r{i}", range(1, size + 1), tokens, n=n, seed=i) for i, (size, tokens, n) in enumerate(shapes)]
    for r in asked:
        toy.add(r)
    for what, which in happenings:
        if what == "send":
            toy.send()
        elif what == "run" and toy.plans:
            toy.run()
            put_off(toy, which)
        elif what == "take":
            toy.take()
        elif what == "rewind" and which == 0:  # the stage keeps its cells and forgets the rest
            toy.plans.clear()
            toy.results.clear()
            toy.stage = ToyStage(toy.limits.blocks, toy.limits.block_tokens, toy.stage)
            toy.scheduler.rewind()
            toy.scheduler.check()
    toy.drain()
    assert_right(toy, *asked)
