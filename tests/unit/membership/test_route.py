"""The way to a serving route, phase by phase; what belongs to an old epoch or comes too early counts for nothing."""

from __future__ import annotations

import pytest

from shoal.membership.events import (
    Event,
    Heard,
    Left,
    RouteBroken,
    RouteFilled,
    RoutePaused,
    StageFailed,
    StageLinked,
    StageLoaded,
)
from shoal.membership.instructions import Cut, LinkStage, LoadStage, Serve
from shoal.membership.route_machine import FILLING, LINKING, LOADING, PAUSING, SERVING, WAITING
from tests.support.membership import (
    cluster,
    fill,
    filling,
    finish,
    joined,
    linking,
    loading,
    loads,
    moving,
    only,
    orders,
    reports,
    serving,
    tick,
)

# From waiting to serving


def test_it_waits_for_enough_nodes():
    c = cluster()
    assert orders(c.handle(joined(1), 0)) == []
    assert (c.pipeline.state, c.pipeline.why) == (WAITING, "1 of 2 nodes have joined")


def test_with_enough_nodes_each_loads_its_layers():
    c = cluster()
    c.handle(joined(1), 0)
    assert orders(c.handle(joined(2), 0)) == [
        LoadStage(1, 1, 0, 2, 0, 2, range(0), 64),
        LoadStage(2, 1, 1, 2, 2, 4, range(0), 64),
    ]


def test_links_follow_when_all_have_loaded():
    c = loading(1, 2)
    assert c.handle(StageLoaded(1, 1, 5, "native"), 0) == []
    assert c.handle(StageLoaded(1, 1, 5, "native"), 0) == []
    assert c.handle(StageLoaded(2, 1, 6, "native"), 0) == [LinkStage(1, 1, 2), LinkStage(2, 1, None)]
    assert (c.pipeline.state, c.pipeline.holdings[2].weight_bytes) == (LINKING, 6)


def test_it_says_how_far_loading_has_come():
    c = loading(1, 2)
    c.handle(StageLoaded(1, 1, 5, "native"), 0)
    late = c.members[2].name
    assert c.pipeline.progress == f"the model is being loaded: loading, 1 of 2 nodes are done, not yet {late}"
    c.handle(StageLoaded(2, 1, 6, "native"), 0)
    assert c.pipeline.progress.startswith("the model is being loaded: linking, 0 of 2 nodes are done")


def test_nothing_is_said_while_it_serves():
    assert serving(1, 2).pipeline.progress == ""


def test_the_route_is_opened_when_all_are_linked():
    c = linking(1, 2)
    assert c.handle(StageLinked(2, 1), 0) == []
    (serve,) = c.handle(StageLinked(1, 1), 0)
    assert c.pipeline.placement is not None
    assert serve == Serve(1, 1, c.pipeline.placement, ((0, 4),))
    assert c.pipeline.state == FILLING


def test_it_serves_when_all_is_filled():
    c = filling(1, 2)
    assert orders(fill(c)) == []
    assert (c.pipeline.state, c.pipeline.why, c.pipeline.route) == (SERVING, "", [1, 2])
    assert [c.pipeline.holdings[n].filled for n in (1, 2)] == [range(2), range(2, 4)]


def test_memory_that_does_not_suffice_is_said_once():
    c = cluster(1)
    assert "not enough memory" in reports(c.handle(joined(1), 0))
    assert (c.pipeline.state, tick(c, 1)) == (WAITING, [])


# What does not count


def test_what_belongs_to_an_old_epoch_is_dropped():
    c = serving(1, 2, 3)
    c.handle(Left(1, "gone"), 0)
    assert (c.pipeline.epoch, c.pipeline.state) == (2, LOADING)
    old: list[Event] = [StageLoaded(2, 1, 1, ""), StageLinked(2, 1), StageFailed(2, 1, "x"), RouteBroken(1, "x"), RouteFilled(1)]
    for event in [*old, RoutePaused(1)]:
        assert c.handle(event, 0) == []
    assert (c.pipeline.epoch, c.pipeline.state) == (2, LOADING)


def test_what_comes_from_nodes_outside_the_route_is_dropped():
    c = loading(1, 2)
    c.handle(joined(3), 0)
    for stray in (StageLoaded(3, 1, 1, ""), StageLinked(3, 1), StageFailed(3, 1, "x"), StageFailed(99, 1, "x"), Heard(99)):
        assert c.handle(stray, 0) == []


@pytest.mark.parametrize("event", [StageLinked(1, 1), RouteFilled(1), RoutePaused(1)])
def test_what_comes_too_early_does_not_count(event: Event):
    c = loading(1, 2)
    assert c.handle(event, 0) == []
    assert c.pipeline.state == LOADING


# Deadlines


@pytest.mark.parametrize(("begin", "deadline"), [(loading, 1800.0), (linking, 20.0)])
def test_what_takes_too_long_is_begun_anew(begin: type, deadline: float):
    c = begin(1, 2)
    assert orders(tick(c, deadline)) == []
    assert set(loads(tick(c, deadline + 1))) == {1, 2}
    assert c.pipeline.epoch == 2


def test_a_pause_that_takes_too_long_becomes_a_cut():
    c = moving(PAUSING)
    out = tick(c, 37)
    assert [type(i) for i in only(out, Cut)] == [Cut]
    assert c.pipeline.serving is None
    finish(c, 38)


def test_a_move_that_takes_too_long_to_load_is_given_up():
    c = moving()
    assert orders(tick(c, 1807)) == []
    assert (c.pipeline.route, c.pipeline.coming) == ([1, 2], None)
