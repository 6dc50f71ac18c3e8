"""A layer's experts are divided so that the stage and its workers end at about the same time, and each runs in one place."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from shoal.executor.expert_split import Pace, RemoteExperts, Split, work

PACES = st.sampled_from([50e-6, 150e-6, 150e-6, 1e-3])


@st.composite
def any_split(draw: st.DrawFn) -> Split:
    known = draw(st.booleans())
    here, there = (Pace(draw(PACES)), Pace(draw(PACES))) if known else (Pace(), Pace(draw(st.sampled_from([0.0, 1e-3]))))
    return Split(draw(st.integers(1, 3)), draw(st.sampled_from([0.0, 200e-6, 5e-3])), draw(st.sampled_from([0.0, 1e-5])), here, there)


ROWS = st.dictionaries(st.integers(0, 15), st.integers(1, 40), min_size=1, max_size=8)
SOME = st.frozensets(st.integers(0, 15))


@given(any_split(), ROWS, SOME, SOME)
def test_each_expert_runs_where_it_is(split: Split, rows: dict[int, int], only: frozenset[int], also: frozenset[int]) -> None:
    sent = split.sent(rows, only, also - only)
    assert sent == sorted(set(sent)) and set(sent) <= rows.keys() & (only | also)
    assert rows.keys() & only <= set(sent)


def ends(split: Split, rows: dict[int, int], sent: set[int]) -> float:
    """When the slower side is done."""
    here = sum(split.here.seconds * work(count) for expert, count in rows.items() if expert not in sent)
    there = sum((split.there.seconds / split.workers) * work(rows[expert]) + split.per_row * rows[expert] for expert in sent)
    return max(here, split.asking + there if sent else 0.0)


@given(any_split(), ROWS, SOME, SOME)
def test_it_takes_little_longer_than_the_best_way(split: Split, rows: dict[int, int], only: frozenset[int], also: frozenset[int]) -> None:
    if not split.here.seconds:
        return
    also -= only
    free = sorted(rows.keys() & also)
    must = rows.keys() & only
    best = min(ends(split, rows, must | set(some)) for count in range(len(free) + 1) for some in combinations(free, count))
    largest = max(
        max(split.here.seconds * work(count), split.there.seconds / split.workers * work(count) + split.per_row * count)
        for count in rows.values()
    )
    assert ends(split, rows, set(split.sent(rows, only, also))) <= best + largest


def test_both_sides_do_the_same_where_nothing_is_known_yet() -> None:
    everything = frozenset(range(8))
    assert len(Split(1, 1e-3).sent(dict.fromkeys(range(8), 1), frozenset(), everything)) == 4
    assert len(Split(3, 1e-3).sent(dict.fromkeys(range(8), 1), frozenset(), everything)) == 6


def test_what_takes_long_to_ask_for_stays_here() -> None:
    rows, everything = dict.fromkeys(range(8), 1), frozenset(range(8))
    assert Split(1, 10e-3, 0.0, Pace(1e-3), Pace(1e-3)).sent(rows, frozenset(), everything) == []
    assert len(Split(1, 3e-3, 0.0, Pace(1e-3), Pace(1e-3)).sent(rows, frozenset(), everything)) in (2, 3)
    assert Split(1, 10e-3, 0.0, Pace(1e-3), Pace(1e-3)).sent(rows, frozenset({5}), everything - {5}) == [5]


def test_workers_that_were_slow_are_tried_again() -> None:
    rows, everything = dict.fromkeys(range(8), 1), frozenset(range(8))
    split = Split(1, 1e-6, 0.0, Pace(1e-4), Pace(1.0))
    idle = 0
    while not split.sent(rows, frozenset(), everything):
        idle += 1
    assert 100 < idle < 4000


def test_a_stage_that_was_slow_once_is_tried_again() -> None:
    rows, everything = dict.fromkeys(range(8), 1), frozenset(range(8))
    split = Split(1, 1e-6, 0.0, Pace(1.0), Pace(1e-4))
    idle = 0
    while len(split.sent(rows, frozenset(), everything)) == 8:
        idle += 1
    assert 100 < idle < 4000


def test_a_pace_follows_what_is_measured() -> None:
    pace = Pace()
    for seconds, units in ((0.0, 4.0), (1.0, 0.0)):
        pace.took(seconds, units)
    assert pace.seconds == 0.0
    pace.took(2.0, 4.0)
    assert pace.seconds == 0.5
    pace.took(9.0, 1.0)  # one that took long is not the rule
    assert 0.5 < pace.seconds < 1.1
    for _ in range(200):
        pace.took(0.2, 1.0)
    assert abs(pace.seconds - 0.2) < 1e-3


def test_a_layer_without_experts_of_workers_is_none_of_theirs() -> None:
    remote = RemoteExperts({1: frozenset({0}), 2: frozenset()}, {1: frozenset({3}), 4: frozenset({2})}, Split(1, 0.0))
    assert [layer for layer in range(6) if remote.of(layer)] == [1, 4]
    found = remote.of(1)
    assert found is not None and (found.only, found.also) == ({0}, {3})
