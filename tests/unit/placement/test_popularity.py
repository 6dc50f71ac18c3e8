"""What was counted of experts' use becomes the probability that a row chooses each of them, once enough was counted."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.placement.cost import ExpertsCost
from shoal.placement.expert_moves import ExpertMoves
from shoal.placement.moves import Moves
from shoal.placement.popularity import ENOUGH, popular
from tests.unit.placement.test_expert_moves import DEMAND, FAST, stage
from tests.unit.placement.test_experts import model, worker


def experts_of(counts: list[int], chosen: int) -> ExpertsCost:
    found = popular(model(layers=2, count=len(counts), chosen=chosen), {1: counts}).layers[1].experts
    assert found is not None
    return found


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=40), st.data())
def test_probabilities_are_in_the_order_of_the_counts(counts: list[int], data: st.DataObject) -> None:
    """ExpertsCost itself refuses what is no distribution."""
    found = experts_of(counts, chosen := data.draw(st.integers(1, len(counts))))
    if sum(counts) < ENOUGH * len(counts):
        assert found.popularity == ()
        return
    assert sum(found.popularity) == pytest.approx(chosen)
    order = sorted(range(len(counts)), key=lambda expert: counts[expert])
    ranked = [found.popularity[expert] for expert in order]
    assert all(a <= b + 1e-9 for a, b in pairwise(ranked))


def test_one_that_every_row_takes_is_certain() -> None:
    found = experts_of([100_000, 50, 50, 50], 2)
    assert found.popularity[0] == 1.0 and found.popularity[1] == pytest.approx(1 / 3)


def test_counts_that_do_not_fit_the_model_say_nothing() -> None:
    cost = model(count=4)
    assert popular(cost, {0: [10**6] * 4, 1: [10**6] * 5, 99: [10**6]}) == cost


def test_the_next_plan_leaves_popular_experts_with_the_stage() -> None:
    use: dict[int, list[int]] = {}
    plan = ExpertMoves(Moves(model(count=16, chosen=2), DEMAND, links=FAST), use=use)
    nodes = [stage(memory=60), worker("w", 30)]
    before = plan.first(nodes, {})
    use.update({layer: [10**5 * (expert >= 12) + 10 for expert in range(16)] for layer in (1, 2, 3)})
    after = plan.first(nodes, {})
    for layer in (1, 2, 3):
        assert before.elsewhere[layer] & {12, 13, 14, 15} and not after.elsewhere[layer] & {12, 13, 14, 15}
        assert len(after.elsewhere[layer]) == len(before.elsewhere[layer])
