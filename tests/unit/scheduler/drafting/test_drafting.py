"""How many drafts pay, by how well earlier ones did and by what rows cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.scheduler.drafting.acceptance import Acceptance
from shoal.scheduler.drafting.draft import Draft
from shoal.scheduler.drafting.drafting import Drafting


class Fixed:
    """Proposes the same, whatever was said."""

    def __init__(self, tokens: list[int], matched: int = 4) -> None:
        self.draft = Draft(tokens, matched)

    def propose(self, tokens: Sequence[int], most: int) -> Draft:
        return Draft(self.draft.tokens[:most], self.draft.matched)


def after(said: list[list[int]], tokens: list[int], most: int = 16) -> tuple[Drafting, Draft]:
    """A sequence of which each draft was `tokens`, and that then said this."""
    drafting, sequence = Drafting(Fixed(tokens)), [0]
    for new in said:
        drafting.propose(sequence, most)
        sequence = sequence + new
    return drafting, drafting.propose(sequence, most)


def flat(rows: int) -> float:
    return 1.0


@given(st.lists(st.booleans(), max_size=60), st.sampled_from([2, 5, 9, 30]))
def test_a_chance_lies_between_none_and_certain_and_follows_what_happened(rights: list[bool], matched: int) -> None:
    acceptance, draft = Acceptance(), Draft([1], matched)
    for right in rights:
        before = acceptance.chance(matched)
        acceptance.learn(draft, [1 if right else 2])
        assert acceptance.chance(matched) >= before if right else acceptance.chance(matched) <= before
    assert 0 < acceptance.chance(matched) < 1


def test_only_what_was_said_counts_and_nothing_after_a_wrong_token() -> None:
    short, long = Acceptance(), Acceptance()
    short.learn(Draft([1, 2], 5), [1, 3])
    long.learn(Draft([1, 2, 3, 4], 5), [1, 3, 3, 4])
    assert short.chance(5) == long.chance(5)
    untold = Acceptance()
    before = untold.chance(5)
    untold.learn(Draft([1, 2], 5), [])
    assert untold.chance(5) == before


def test_what_is_well_supported_is_expected_to_be_right_more_often() -> None:
    chances = [Acceptance().chance(matched) for matched in (2, 3, 4, 8, 16, 40)]
    assert chances == sorted(chances) and chances[0] < chances[-1]


def test_drafts_that_were_right_become_longer_and_wrong_ones_stop() -> None:
    def cost(rows: int) -> float:
        return 1 + 0.3 * rows

    right, draft = after([[1, 2, 3, 4]] * 20, [1, 2, 3, 4])
    assert right.length(draft, 16, 1, cost) == 4
    wrong, draft = after([[9]] * 30, [1, 2, 3, 4])
    assert wrong.length(draft, 16, 1, cost) == 0


def test_a_sequence_that_begins_to_repeat_is_noticed_without_any_verified() -> None:
    """A draft that is not sent is compared with what is said all the same."""

    def cost(rows: int) -> float:
        return 1 + 0.3 * rows

    drafting, draft = after([[9]] * 30 + [[1]] * 40, [1, 2])
    assert drafting.length(draft, 16, 1, cost) == 2


def test_rows_that_cost_as_much_as_steps_are_not_filled_with_drafts() -> None:
    drafting, draft = after([[1, 2]] * 20, [1, 2])
    assert drafting.length(draft, 16, 1, lambda rows: 1.0 + rows) == 0


def test_many_streams_leave_less_to_gain() -> None:
    """Where the rows of others fill a step, one that may be wrong costs more than it brings."""
    drafting, draft = after([[1, 2, 3], [1, 2, 9], [9]] * 10, [1, 2, 3])

    def cost(streams: int) -> Callable[[int], float]:
        return lambda rows: 1 + 0.1 * (streams + rows)

    lengths = [drafting.length(draft, 16, streams, cost(streams)) for streams in (1, 4, 16, 64)]
    assert lengths[0] == 3
    assert lengths == sorted(lengths, reverse=True) and lengths[-1] == 0


@given(st.integers(0, 20), st.floats(0, 2), st.integers(1, 9))
def test_a_length_is_within_its_bounds(most: int, row: float, streams: int) -> None:
    drafting, draft = after([], [1] * 12)
    assert 0 <= drafting.length(draft, most, streams, lambda rows: 1 + row * rows) <= min(most, 12)


@pytest.mark.parametrize("most", [0, 1, 5])
def test_no_more_is_tried_than_may_be(most: int) -> None:
    drafting, draft = after([[1] * 8] * 9, [1] * 8)
    assert drafting.length(draft, most, 1, flat) == most
