"""Layers that move while a route serves, and nodes that are drained of theirs."""

from __future__ import annotations

import pytest

from shoal.membership.events import (
    DrainAsked,
    Joined,
    Left,
    RouteBroken,
    RoutePaused,
    SpeedSeen,
)
from shoal.membership.instructions import Cut, Dismiss, LinkStage, LoadStage, Pause, RestStage, Serve
from shoal.membership.route_machine import SERVING
from shoal.placement.profile import NodeProfile
from tests.support.membership import (
    dealt,
    fill,
    filling,
    finish,
    link,
    load,
    loading,
    loads,
    moving,
    only,
    orders,
    planner,
    reports,
    serving,
    tick,
)

# Moves


def test_a_better_split_is_loaded_beside_paused_for_and_linked():
    c = moving()
    assert load(c, 6) == [Pause(1)]
    out = c.handle(RoutePaused(1), 6)
    assert out == [RestStage(2, 2), LinkStage(1, 2, 3), LinkStage(3, 2, None)]
    (serve,) = only(link(c, 6), Serve)
    assert isinstance(serve, Serve)
    assert serve.spans == ((2, 4),)
    fill(c, 6)
    assert (c.pipeline.route, c.pipeline.holdings[2].filled) == ([1, 3], range(0))


def test_after_a_move_there_is_a_rest():
    c = moving()
    finish(c, 7)
    planner(c).better = dealt(("n1", 0, 2), ("n2", 2, 4))
    assert tick(c, 11) == []
    assert set(loads(tick(c, 12.5))) == {1, 2}


def test_keys_and_values_of_another_pool_are_not_kept():
    c = serving(1, 2)
    planner(c).better = dealt(("n1", 0, 2), ("n2", 2, 4), kv_tokens=32)
    assert {i.node: i.keep for i in tick(c, 6) if isinstance(i, LoadStage)} == {1: range(0), 2: range(0)}


def test_a_node_that_is_slower_than_it_said_is_measured_anew():
    c = serving(1, 2, 3)
    planner(c).better = dealt(("n1", 0, 2), ("n3", 2, 4))
    assert set(loads(c.handle(SpeedSeen(2, 2.0), 6))) == {1, 3}
    assert c.members[2].profile.bytes_per_second == 0.5
    assert "2.0 times slower" in c.pipeline.described(2, 6)


@pytest.mark.parametrize(("seen", "slower"), [(1.9, 1.0), (0.5, 1.0), (2.6, 2.6)])
def test_speed_is_mended_only_where_it_matters(seen: float, slower: float):
    c = serving(1, 2)
    c.handle(SpeedSeen(1, seen), 1)
    assert c.members[1].slower == slower


def test_a_node_that_recovered_its_speed_counts_as_measured():
    c = serving(1, 2)
    c.handle(SpeedSeen(1, 3.0), 1)
    assert c.handle(SpeedSeen(1, 3.3), 2) == []
    c.handle(SpeedSeen(1, 1.1), 3)
    assert c.members[1].slower == 1.0


def test_the_unknown_is_neither_slow_nor_drained():
    c = serving(1, 2)
    assert c.handle(SpeedSeen(9, 3.0), 1) == c.handle(DrainAsked(9), 1) == []


# Leaving in peace


def test_who_holds_no_layers_may_leave_at_once():
    c = serving(1, 2, 3)
    assert orders(c.handle(DrainAsked(3), 0)) == [Dismiss(3, "it holds no layers; it may leave")]


def test_a_node_is_drained_while_the_route_serves_on():
    c = serving(1, 2, 3)
    out = c.handle(DrainAsked(2), 0)
    assert loads(out) == {1: (0, 2), 3: (2, 4)}
    assert (c.pipeline.state, only(out, Cut)) == (SERVING, [])
    assert "draining" in c.pipeline.described(2, 0)
    assert planner(c).beside == [True]
    assert only(finish(c), Dismiss) == [Dismiss(2, "its layers have been moved; it may leave")]


def test_asking_twice_is_asking_once():
    c = serving(1, 2, 3)
    c.handle(DrainAsked(2), 0)
    assert c.handle(DrainAsked(2), 0) == []


def test_who_leaves_in_peace_is_not_held_off():
    c = serving(1, 2, 3)
    for node in (3, 4, 5):
        c.handle(Left(node, "it was drained", graceful=True), 0)
        c.handle(Joined(node + 1, 0, NodeProfile("n3", 1, 1.0, 1.0), "host", 3, "1"), 0)
    assert c.pipeline.described(6, 0) == "idle, ready to take over"


def test_who_cannot_be_done_without_stays_and_that_is_said():
    c = serving(1, 2, alone=False)
    out = c.handle(DrainAsked(2), 0)
    assert "n2 cannot be drained: not enough memory" in reports(out)
    assert (orders(out), c.members[2].draining, c.pipeline.state) == ([], False, SERVING)


def test_a_drain_overrides_a_move_that_counts_on_the_node():
    c = moving()
    out = c.handle(DrainAsked(1), 6)
    assert 1 not in loads(out)
    assert (c.pipeline.epoch, c.pipeline.state) == (3, SERVING)
    assert only(finish(c, 6), Dismiss) == [Dismiss(1, "its layers have been moved; it may leave")]


def test_a_drain_waits_for_a_route_that_is_being_opened():
    c = filling(1, 2, 3)
    assert orders(c.handle(DrainAsked(1), 0)) == []
    fill(c)
    assert loads(tick(c, 0.1)) == {3: (0, 2), 2: (2, 4)}


def test_who_is_being_drained_and_lost_is_only_lost():
    c = serving(1, 2, 3)
    c.handle(DrainAsked(2), 0)
    assert loads(c.handle(Left(2, "gone"), 0)) == {1: (0, 2), 3: (2, 4)}
    assert only(finish(c), Dismiss) == []


def test_who_is_being_drained_stays_when_the_others_are_lost():
    c = serving(1, 2)
    c.handle(DrainAsked(2), 0)
    out = c.handle(Left(1, "gone"), 0)
    assert "n2 cannot be drained" in reports(out)
    assert loads(out) == {2: (0, 4)}


def test_who_is_being_drained_may_leave_when_no_route_can_be_had_anyway():
    c = loading(1, 2)
    c.handle(DrainAsked(2), 0)
    assert only(c.handle(Left(1, "gone"), 0), Dismiss) == [Dismiss(2, "it holds no layers; it may leave")]


def test_who_is_needed_to_mend_a_broken_route_is_not_sent_home():
    """A route broke a moment ago: who was part of it holds keys and values still."""
    c = serving(1, 2, alone=False)
    c.handle(RouteBroken(1, "eof"), 1)
    assert only(c.handle(DrainAsked(2), 1.1), Dismiss) == []
    out = tick(c, 1.4)
    assert "n2 cannot be drained" in reports(out)
    assert set(loads(out)) == {1, 2}
