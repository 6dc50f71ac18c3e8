"""What followed where a sequence's last tokens came before."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shoal.scheduler.drafting.draft import Draft
from shoal.scheduler.drafting.prompt_lookup import LONGEST, PLACES, PromptLookup


def naive(tokens: list[int], most: int) -> Draft:
    """By a look at every place."""
    last = len(tokens) - 1
    places = [place for place in range(last - 1, 0, -1) if tokens[place - 1 : place + 1] == tokens[last - 1 :]][:PLACES]
    lengths = {place: alike(tokens, place, last) for place in places}
    if not places:
        return Draft([])
    best = max(lengths, key=lambda place: (lengths[place], place))
    said = list(tokens)
    for i in range(most):
        said.append(said[best + 1 + i])
    return Draft(said[len(tokens) :], lengths[best])


def alike(tokens: list[int], a: int, b: int) -> int:
    return next((n for n in range(min(LONGEST, a + 1)) if tokens[a - n] != tokens[b - n]), min(LONGEST, a + 1))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=120), st.integers(0, 20), st.data())
def test_it_finds_what_a_look_at_every_place_finds(tokens: list[int], most: int, data: st.DataObject) -> None:
    lookup, at = PromptLookup(), 0
    while at < len(tokens):  # it grows by more than one token at a time
        at += data.draw(st.integers(1, len(tokens) - at))
        assert lookup.propose(tokens[:at], most) == naive(tokens[:at], most)


def test_the_longest_common_end_counts_and_not_the_latest_place() -> None:
    assert PromptLookup().propose([1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3], 2) == Draft([7, 9], 3)


def test_a_text_that_repeats_itself_goes_on_repeating() -> None:
    assert PromptLookup().propose([5, 6, 5, 6], 5) == Draft([5, 6, 5, 6, 5], 2)


def test_nothing_that_came_before_is_no_draft() -> None:
    assert PromptLookup().propose([1, 2, 3, 4], 5) == Draft([])
    assert PromptLookup().propose([1], 5) == Draft([])


def test_a_token_costs_the_same_however_long_the_sequence_is() -> None:
    class Counted(list[int]):
        reads = 0

        def __getitem__(self, at: Any) -> Any:
            Counted.reads += 1
            return super().__getitem__(at)

    reads = []
    for size in (1_000, 16_000):
        tokens, lookup = Counted([7, 8] * (size // 2)), PromptLookup()
        lookup.propose(tokens, 4)
        tokens.append(7)
        Counted.reads = 0
        lookup.propose(tokens, 4)
        reads.append(Counted.reads)
    assert reads[0] == reads[1] < 4 * PLACES * LONGEST
