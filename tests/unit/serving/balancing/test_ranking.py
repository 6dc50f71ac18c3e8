"""A ranking is a sorted list that is cheaper."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.serving.balancing.ranking import Ranking

items = st.integers(0, 9)


@given(st.lists(st.tuples(items, st.none() | st.integers(0, 3), st.sets(items, max_size=3)), max_size=300))
def test_the_least_is_that_of_a_sorted_list(events: list[tuple[int, int | None, set[int]]]):
    ranking: Ranking[int, float] = Ranking()
    keys: dict[int, tuple[float, int]] = {}
    for turn, (item, key, without) in enumerate(events):
        if key is None:
            ranking.drop(item)
            keys.pop(item, None)
        else:
            ranking.put(item, key)
            keys[item] = (key, turn)
        left = {key: item for item, key in keys.items() if item not in without}
        assert ranking.least(without) == (left[min(left)] if left else None)


def test_what_is_out_of_date_does_not_pile_up():
    ranking: Ranking[int, float] = Ranking()
    for turn in range(10_000):
        ranking.put(turn % 10, -turn)
    assert len(ranking._heap) < 100
