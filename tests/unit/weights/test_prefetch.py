"""Guesses are compared with what comes, and read only while those of their kind come true."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.weights.prefetch import UNWATCHED, WATCHED, Guess, Prefetch, combined

NOTHING_HELD = [-1] * 8
SURE, VAGUE = 1, 2
"""Kinds."""


def visits(prefetch: Prefetch, right: list[bool], kind: int = SURE, held: int = -1) -> list[list[int]]:
    """What would have been read before each visit, where expert 3 is guessed. held: its slot."""
    page = [-1, -1, -1, held, -1, -1, -1, -1]
    read: list[list[int]] = []
    for came in right:
        read.append(prefetch.worth_reading(5, [Guess(3, kind)], page))
        prefetch.compare(5, [3] if came else [4], [])
    return read


def test_nothing_is_read_before_a_kind_has_come_true_a_dozen_times() -> None:
    read = visits(Prefetch(), [True] * 14)
    assert read == [[]] * 12 + [[3]] * 2


def test_a_kind_that_is_too_often_wrong_is_never_read() -> None:
    assert visits(Prefetch(), [True, True, True, True, False] * 200) == [[]] * 1000


def test_a_kind_that_no_longer_comes_true_is_not_read_any_more_and_may_be_again() -> None:
    prefetch = Prefetch()
    assert visits(prefetch, [True] * 400)[-1] == [3]
    assert visits(prefetch, [True, False] * 300)[-1] == []
    assert visits(prefetch, [True] * 1000)[-1] == [3]


def test_kinds_are_trusted_apart() -> None:
    prefetch = Prefetch()
    visits(prefetch, [True] * 20)
    assert prefetch.worth_reading(5, [Guess(1, VAGUE), Guess(2, SURE)], NOTHING_HELD) == [2]


def test_what_is_held_is_not_read_and_says_nothing_about_what_would_be() -> None:
    prefetch = Prefetch()
    assert visits(prefetch, [True] * 100, held=7) == [[]] * 100
    assert prefetch.worth_reading(5, [Guess(1, SURE)], NOTHING_HELD) == []


def test_the_kind_that_is_likeliest_is_read_first() -> None:
    prefetch = Prefetch()
    visits(prefetch, [True] * 50)
    visits(prefetch, [True] * 15, VAGUE)
    assert prefetch.worth_reading(5, [Guess(1, VAGUE), Guess(2, SURE)], NOTHING_HELD) == [2, 1]


def test_what_is_foreseen_is_counted() -> None:
    prefetch = Prefetch(accuracy=0)
    prefetch.worth_reading(5, [Guess(0, SURE), Guess(1, SURE), Guess(2, VAGUE)], [-1, 9, -1, -1])
    prefetch.compare(5, [0, 1, 3], missed=[3])
    foreseen = prefetch.foreseen
    assert (foreseen.recall, foreseen.accuracy, foreseen.coverage) == pytest.approx((2 / 3, 2 / 3, 1 / 2))


def test_guesses_about_a_visit_that_does_not_come_are_dropped() -> None:
    prefetch = Prefetch(accuracy=0)
    prefetch.worth_reading(5, [Guess(3, SURE)], NOTHING_HELD)
    prefetch.compare(1, [3], [])
    prefetch.compare(5, [3], [])
    assert prefetch.foreseen.guesses == 0


def test_where_guessing_does_not_pay_most_steps_are_not_guessed_about() -> None:
    prefetch = Prefetch()
    watched = 0
    for _ in range(2 * (WATCHED + UNWATCHED)):
        prefetch.step()
        watched += prefetch.watching
    assert watched == 2 * WATCHED
    visits(prefetch, [True] * 60)
    for _ in range(WATCHED + UNWATCHED):
        prefetch.step()
        assert prefetch.watching


def test_guessing_does_not_pay_where_nearly_everything_is_here() -> None:
    """However often the guesses come true: there is nothing to be read."""
    prefetch = Prefetch()
    visits(prefetch, [True] * 60)
    visits(prefetch, [True] * 200, held=7)
    watched = 0
    for _ in range(WATCHED + UNWATCHED):
        prefetch.step()
        watched += prefetch.watching
    assert watched == WATCHED


@given(st.lists(st.integers(0, 300), unique=True), st.dictionaries(st.integers(0, 300), st.floats(0, 1)))
def test_evidence_is_combined(by_router: list[int], by_history: dict[int, float]) -> None:
    guesses = combined(by_router, by_history)
    assert [guess.expert for guess in guesses][: len(by_router)] == by_router
    assert sorted(guess.expert for guess in guesses) == sorted({*by_router, *by_history})
    assert {guess.kind for guess in guesses} <= set(range(17 * 9))
