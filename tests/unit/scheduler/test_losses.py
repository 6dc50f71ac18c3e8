"""Streams outlive routes: whatever is lost at whatever moment, every sequence says what it would have said alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import cycle
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import InvalidRequest
from shoal.request import Priority, Request
from shoal.scheduler.limits import Limits
from tests.support.toy_layers import Layered
from tests.support.toy_stage import asking, expected, expected_embedding, expected_scores, limits, request

ALL = [(0, 3)]


def assert_right(toy: Layered, *requests: Request) -> None:
    for r in requests:
        for choice in range(r.n):
            assert (toy.said[r.id, choice], toy.ends.get((r.id, choice))) == expected(r, choice, toy.layers)


def started(*requests: Request, blocks: int = 16, steps: int = 2, depth: int = 1, slots: int = 8) -> Layered:
    """After some steps there and back."""
    toy = Layered(limits(blocks=blocks, depth=depth, slots=slots))
    for r in requests:
        toy.add(r)
    for _ in range(steps):
        toy.step_all()
    return toy


def mend(toy: Layered, spans: list[tuple[int, int]], forgotten: float = 0.0) -> None:
    toy.lose(spans, forgotten)
    toy.recover(spans)


# In flight


def test_a_draw_that_was_on_its_way_is_drawn_again():
    toy = started(r := request("a", [1, 2, 3], 6))
    toy.fill()
    mend(toy, [])
    toy.drain()
    assert_right(toy, r)


def test_what_no_stage_was_told_of_is_opened_again_with_what_was_said():
    toy = started(request("a", [1, 2, 3], 6), steps=3)
    mend(toy, [])
    plan = toy.send()
    assert plan is not None
    ((opened,), (chunk,)) = plan.opened, plan.chunks
    assert opened.generated == toy.said["a", 0]
    assert (chunk.position, len(chunk.tokens), len(chunk.blocks)) == (5, 1, 2)


def test_a_rewound_scheduler_says_nothing_of_the_old_route():
    toy = started(request("a", [1, 2], 9), request("b", [3, 4], 9), blocks=4, steps=3)
    toy.cancel("a")
    toy.lose([])
    plan = toy.send()
    assert plan is not None
    assert (plan.closed, plan.dropped, plan.copies) == ([], [], [])


def test_choices_that_were_forking_when_all_was_lost_run_on():
    toy = started(r := request("a", [1, 2, 3, 4, 5], 4, n=3), steps=1)
    plan = toy.send()
    assert plan is not None and plan.copies
    mend(toy, [])
    toy.drain()
    assert_right(toy, r)


def test_a_preempted_sequence_whose_draw_is_lost_does_not_wait_for_it():
    toy = Layered(limits(blocks=4, block_tokens=2, depth=2))
    first, second = request("a", [1, 2], 6), request("b", [3, 4], 6)
    toy.add(first)
    toy.add(second)
    while not toy.scheduler.counters.preemptions:
        toy.step_all()
    mend(toy, [])
    toy.drain()
    assert_right(toy, first, second)


def test_an_idle_scheduler_is_rewound_for_nothing():
    toy = Layered(limits())
    mend(toy, ALL)
    assert toy.refilled == []
    assert toy.send() is None


# Layers


@pytest.mark.parametrize("spans", [[(0, 1)], [(1, 2)], [(2, 3)], [(0, 1), (2, 3)], ALL])
@pytest.mark.parametrize("forgotten", [0.0, 0.3, 1.0])
def test_lost_layers_are_filled_anew(spans: list[tuple[int, int]], forgotten: float):
    toy = started(a := request("a", range(1, 11), 8), b := request("b", [5], 9), c := request("c", [6, 7], 5, n=3), steps=4)
    mend(toy, spans, forgotten)
    toy.drain()
    assert_right(toy, a, b, c)


def test_shared_blocks_are_filled_once():
    toy = started(request("a", range(1, 9), 9, n=4), steps=3)
    together = sum(s.computed for s in toy.scheduler.slots.running)
    mend(toy, ALL)
    assert sum(plan.rows for plan in toy.refilled) == together - 3 * 4  # of eight prompt tokens each child copied the last four


def test_what_is_held_by_none_is_not_found_again():
    toy = started(request("a", range(1, 10), 2), steps=5)
    mend(toy, [(1, 2)])
    toy.add(r := request("b", range(1, 10), 2))
    toy.drain()
    assert toy.scheduler.counters.cached_tokens == 0
    assert_right(toy, r)


def test_what_is_held_by_none_is_found_where_no_layer_was_lost():
    toy = started(request("a", range(1, 10), 2), steps=5)
    mend(toy, [])
    toy.add(r := request("b", range(1, 10), 2))
    toy.drain()
    assert toy.scheduler.counters.cached_tokens == 8
    assert_right(toy, r)


def test_a_sequence_that_gives_way_right_after_it_was_filled_starts_a_table_anew():
    """It was told of, but not opened, on this route."""
    toy = started(a := request("a", [1, 2], 10), b := request("b", [3, 4], 10), blocks=4, steps=4, slots=2)
    toy.lose([(1, 2)])
    toy.recover([(1, 2)])
    toy.scheduler.slots.preempt(toy.scheduler.slots.running[-1])
    toy.drain()
    assert_right(toy, a, b)


def test_a_sequence_that_ends_right_after_it_was_filled_is_forgotten_by_the_stages():
    toy = started(request("a", [1, 2], 10), request("b", [3, 4], 4), steps=2)
    mend(toy, ALL)
    toy.cancel("a")
    toy.drain()
    assert toy.known == 0


def borrowed() -> tuple[Layered, Request, int]:
    """`b` holds an own copy of a block that `a` was the first to compute, and its fork shares it; `y` reads a's, and then the fork's."""
    a, b = request("a", [1, 2, 3, 4, 6], 20, seed=9), request("b", [1, 2, 3, 4, 5], 14, n=2)
    toy = started(a, b, blocks=32, steps=8)
    y = request("y", [1, 2, 3, 4, 5, *expected(b, 1, 3)[0][:4]], 6)
    toy.add(y)
    toy.step_all()
    of_a, of_b, of_fork, of_y = (s.table for s in toy.scheduler.slots.running)
    assert of_b[0] == of_fork[0] != of_a[0] == of_y[0]
    assert of_b[1] != of_fork[1] == of_y[1]
    return toy, y, of_b[0]


def test_who_read_what_was_filled_from_missing_rows_is_filled_again_too():
    toy, y, block = borrowed()
    toy.lose([(1, 2)])
    toy.forget(block)
    toy.recover([(1, 2)])
    toy.drain()
    assert_right(toy, y)


def test_who_shares_blocks_of_one_that_ends_while_it_is_filled_is_filled_again_too():
    toy = started(request("a", [1, 2, 3, 4, 5], 9), b := request("b", [1, 2, 3, 4, 6], 9), steps=1)
    toy.add(c := request("c", [1, 2, 3, 4, 7], 9))
    toy.step_all()
    toy.lose([(1, 2)])
    toy.forget(toy.scheduler.slots.running[0].table[0])
    toy.recover([(1, 2)], ["a"])
    toy.drain()
    assert_right(toy, b, c)


# Another pool


def test_restarting_keeps_what_was_said_and_computes_it_anew():
    toy = started(a := request("a", [1, 2, 3], 9), b := request("b", [4], 5, n=2), steps=3)
    assert toy.restart(limits(blocks=9)) == []
    assert (toy.scheduler.running, toy.scheduler.waiting, toy.scheduler.pool.available) == (0, 3, 9)
    toy.drain()
    assert_right(toy, a, b)


def test_restarting_ends_what_no_longer_fits():
    toy = started(a := request("a", [1, 2, 3], 3), request("b", [4, 5], 14, n=2), steps=2)
    assert toy.restart(limits(blocks=2)) == ["b"]
    toy.drain()
    assert_right(toy, a)


def test_what_ends_while_it_is_filled_again_is_closed():
    toy = started(*(request(name, [at, *range(1, 20)], 8) for at, name in enumerate("ab", 1)), steps=4)
    toy.scheduler.rewind()
    steps = toy.scheduler.refill(ALL, None, set())
    first = next(steps)
    assert {chunk.sequence for chunk in first.chunks} == {0}
    toy.cancel("b")
    told = {chunk.sequence for plan in (first, *steps) for chunk in plan.chunks}
    closed = toy.scheduler.schedule()
    assert closed is not None and closed.closed == [1] and told == {0, 1}


def test_a_restarted_scheduler_has_nothing_to_refill():
    toy = started(request("a", [1, 2, 3], 9), steps=3)
    toy.restart(limits(blocks=9))
    assert list(toy.scheduler.refill(ALL, None, set())) == []
    assert toy.scheduler.computed == 0


def test_a_deeper_route_spreads_draws_over_more_steps():
    toy = started(*(request(name, [ord(name) % 20], 9) for name in "abcd"), steps=1)
    toy.lose([])
    toy.scheduler.deepen(4)
    assert [len(plan.chunks) for _ in range(4) if (plan := toy.scheduler.schedule()) is not None] == [1, 1, 1, 1]


# Whatever happens


@dataclass(frozen=True)
class Scenario:
    limits: Limits
    bounds: tuple[int, ...]
    prompts: list[list[int]]
    classes: list[Priority]
    """Of the requests, in turn."""
    events: list[int]
    seed: int


SPANS = [[], [(0, 1)], [(1, 2)], [(2, 3)], [(0, 2)], [(1, 3)], [(0, 1), (2, 3)], ALL]


def scenarios() -> st.SearchStrategy[Scenario]:
    token = st.integers(1, 2)  # few, so that prefixes are shared
    sizes = st.builds(
        limits,
        st.integers(3, 14),
        st.integers(1, 4),
        slots=st.integers(1, 6),
        step_tokens=st.integers(1, 12),
        depth=st.integers(1, 4),
        drafts=st.sampled_from([0, 1, 6]),
    )
    return st.builds(
        Scenario,
        limits=sizes,
        bounds=st.sampled_from([(0, 3), (0, 1, 3), (0, 1, 2, 3)]),
        prompts=st.lists(st.lists(token, min_size=1, max_size=12), min_size=1, max_size=7),
        classes=st.lists(st.sampled_from(Priority), min_size=1, max_size=4),
        events=st.lists(st.integers(0, 1199), min_size=30, max_size=60),
        seed=st.integers(0, 9),
    )


class Play:
    """Adds, sends, runs, applies, cancels and loses as the events say; what was cancelled is not expected to end."""

    def __init__(self, scenario: Scenario) -> None:
        self.toy = Layered(scenario.limits, scenario.bounds)
        self.chance = Random(scenario.seed)
        self.added: dict[str, Request] = {}
        self.cancelled: set[tuple[str, int]] = set()
        self.refused: set[str] = set()
        self.waiting = [asking(i, p, c) for i, (p, c) in enumerate(zip(scenario.prompts, cycle(scenario.classes), strict=False))]

    def happen(self, event: int) -> None:
        what, pick = event % 12, event // 12
        if what <= 1 and self.waiting:
            self.add(self.waiting.pop())
        elif what == 2 and self.added:
            self.cancel([*self.added][pick % len(self.added)], pick)
        elif what <= 5:
            self.toy.run(pick)
        elif what <= 8:
            self.toy.take()
            self.toy.fill()
        elif what <= 10:
            self.lose(pick)
        elif pick % 4 == 0:
            self.restart(pick)

    def add(self, r: Request) -> None:
        if len(r.prompt) + r.max_tokens > self.toy.limits.longest:
            with pytest.raises(InvalidRequest):
                self.toy.add(r)
            return
        self.toy.add(r)
        self.toy.fill()
        self.added[r.id] = r

    def cancel(self, name: str, pick: int) -> None:
        r = self.added[name]
        choice = pick % r.n if pick % 2 else None
        self.toy.cancel(name, choice)
        self.cancelled |= {(name, c) for c in range(r.n) if choice in (None, c) and (name, c) not in self.toy.ends}

    def lose(self, pick: int) -> None:
        spans = SPANS[pick % len(SPANS)]
        self.toy.lose(spans, [0.0, 0.1, 0.5, 1.0][pick // 8 % 4], self.chance)
        leaving = [name for name in self.added if pick % 5 == 0 and self.chance.random() < 0.3]
        self.cancelled |= {(name, c) for name in leaving for c in range(self.added[name].n) if (name, c) not in self.toy.ends}
        self.toy.recover(spans, leaving)
        for name in leaving:
            self.toy.cancel(name)

    def restart(self, pick: int) -> None:
        old = self.toy.limits
        blocks = 3 + pick // 4 % 12
        lost = self.toy.restart(replace(old, blocks=blocks))
        self.refused |= set(lost)


def play(scenario: Scenario) -> Play:
    game = Play(scenario)
    for event in scenario.events:
        game.happen(event)
    for r in game.waiting:
        game.add(r)
    game.toy.drain()
    return game


@pytest.mark.slow
@settings(max_examples=300)
@given(scenarios())
def test_every_sequence_says_what_it_would_say_alone(scenario: Scenario):
    game = play(scenario)
    for r in game.added.values():
        scores, embedding = game.toy.scores[r.id], game.toy.embeddings[r.id]
        if (r.id, 0) in game.cancelled or r.id in game.refused:
            assert scores == expected_scores(r, 3)[: len(scores)]
            assert embedding in (b"", expected_embedding(r, 3))
        else:
            assert (scores, embedding) == (expected_scores(r, 3), expected_embedding(r, 3))
        for choice in range(r.n):
            said, (right, finish) = game.toy.said[r.id, choice], expected(r, choice, 3)
            if (r.id, choice) in game.cancelled or r.id in game.refused:
                assert said == right[: len(said)]
            else:
                assert (said, game.toy.ends.get((r.id, choice))) == (right, finish)


@pytest.mark.slow
@settings(max_examples=100)
@given(scenarios())
def test_nothing_is_left_behind(scenario: Scenario):
    game = play(scenario)
    scheduler = game.toy.scheduler
    assert (scheduler.running, scheduler.waiting, scheduler.in_flight, scheduler.pool.used) == (0, 0, 0, 0)
    assert game.toy.known == 0
