"""Which bytes are read again for every step."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.placement.cost import ExpertsCost, LayerCost, Matrices, ModelCost
from shoal.placement.streaming import StreamedWeights
from tests.support.nodes import MB, models

SHARES = st.floats(0, 1)


def sparse(popularity: tuple[float, ...] = (), hits: tuple[tuple[float, float], ...] = ()) -> StreamedWeights:
    """Four layers of 16 experts of 1 MB, two of them chosen, beside 8 MB that every row needs, and a head of 4."""
    layer = LayerCost(Matrices(8 * MB, 8 * MB), 16, 16, experts=ExpertsCost(16, 2, Matrices(MB, MB), popularity, hits))
    return StreamedWeights(ModelCost((layer,) * 4, Matrices(4 * MB, 4 * MB), 16, 0))


def test_what_every_row_needs_is_held_first():
    streaming = sparse()
    assert (streaming.always, streaming.total) == (36 * MB, 100 * MB)
    assert streaming.shares(0) == (0, 0)
    assert streaming.shares(18 * MB) == (0.5, 0)
    assert streaming.shares(68 * MB) == (1, 0.5)
    assert streaming.shares(100 * MB) == (1, 1)


def test_of_equally_popular_experts_the_share_that_is_not_held_is_missed():
    streaming = sparse()
    assert streaming.missed(1, 36 * MB) == pytest.approx(4 * 2 * MB)
    assert streaming.missed(1, 68 * MB) == pytest.approx(4 * MB)
    assert streaming.missed(10_000, 68 * MB) == pytest.approx(32 * MB)
    assert streaming.missed(5, 100 * MB) == 0
    assert streaming.missed(1, 18 * MB) == pytest.approx(18 * MB + 8 * MB)


def test_what_is_expected_of_popular_experts_is_what_random_routing_does():
    """Rows that choose each expert by itself with its probability."""
    popularity = (0.5, 0.4, 0.3, 0.2, *[0.6 / 12] * 12)
    streaming, rng, rows, times = sparse(popularity), random.Random(1), 3, 4000
    for held in (0, 2, 4, 7):
        missed = sum(len({e for _ in range(rows) for e in range(held, 16) if rng.random() < popularity[e]}) for _ in range(times))
        assert streaming.missed_experts(0, rows, held / 16) == pytest.approx(missed / times, rel=0.05)


def test_popular_experts_are_missed_less():
    popular = sparse((0.5, 0.4, 0.3, 0.2, *[0.6 / 12] * 12))
    for rows in (1, 4, 16):
        assert popular.missed_experts(0, rows, 0) <= sparse().missed_experts(0, rows, 0) + 1e-9
        assert popular.missed_experts(0, rows, 0.25) < sparse().missed_experts(0, rows, 0.25)


def test_measured_hits_count_for_one_row_and_no_longer_when_all_experts_are_chosen():
    local, flat = sparse(hits=((0.25, 0.6), (0.5, 0.8))), sparse()
    assert local.missed_experts(0, 1, 0.5) == pytest.approx(2 * (1 / 8 * 0.5 + 7 / 8 * 0.2))
    assert local.missed_experts(0, 4, 0.5) < flat.missed_experts(0, 4, 0.5)
    assert local.missed_experts(0, 10_000, 0.5) == pytest.approx(8)


@pytest.mark.parametrize("hits", [((0.5, 0.4), (0.25, 0.6)), ((0.25, 0.6), (0.5, 0.5)), ((0.5, 1.2),)])
def test_hits_that_do_not_rise_are_refused(hits: tuple[tuple[float, float], ...]):
    with pytest.raises(ValueError, match="hits"):
        ExpertsCost(16, 2, Matrices(1, 1), hits=hits)


@pytest.mark.parametrize("popularity", [(0.5, 0.5), (0.1,) * 16, (1.5, 0.5, *[0.0] * 14)])
def test_what_is_no_popularity_is_refused(popularity: tuple[float, ...]):
    with pytest.raises(ValueError, match="popularity"):
        ExpertsCost(16, 2, Matrices(1, 1), popularity)


@given(models(5), SHARES, SHARES, st.integers(1, 600))
def test_holding_more_never_misses_more(model: ModelCost, a: float, b: float, rows: int):
    streaming = StreamedWeights(model)
    less, more = (x * streaming.total for x in sorted((a, b)))
    assert streaming.missed(rows, more) <= streaming.missed(rows, less) * (1 + 1e-9)
    assert streaming.buffers(more, None) <= streaming.buffers(less, None) * (1 + 1e-9)
    assert streaming.missed(rows, less) <= (streaming.total - less) * (1 + 1e-9) + 1e-3


@given(models(5), SHARES, st.floats(0, 2), st.none() | st.integers(1, 64))
def test_the_most_that_fits_fits_and_more_does_not(model: ModelCost, above: float, room: float, rows: int | None):
    streaming = StreamedWeights(model)
    held = above * streaming.total
    size = room * streaming.total
    most = streaming.most(size, held, rows)
    if most < 0:
        assert streaming.buffers(held, rows) > size
        return
    rest = streaming.total - held
    assert most <= rest
    used = most + (streaming.buffers(held + most, rows) if most < rest else 0)
    assert used <= size * (1 + 1e-9) + 1e-3
    if most < rest:
        more = min(most + max(1e-4 * rest, 2), rest)
        assert more + (streaming.buffers(held + more, rows) if more < rest else 0) > size


def test_without_buffers_all_of_the_room_is_used():
    assert sparse().most(10 * MB, 0, None, buffered=False) == 10 * MB
    assert sparse().most(10 * MB, 95 * MB, None, buffered=False) == 5 * MB


def test_layers_of_one_kind_are_one_group():
    layers = sparse().groups
    assert [count for _, count in layers] == [4]
    other = replace(layers[0][0], window=7)
    assert len(StreamedWeights(ModelCost((layers[0][0], other), Matrices(0, 0), 16, 0)).groups) == 2
