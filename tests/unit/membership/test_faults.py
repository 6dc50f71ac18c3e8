"""Stages that fail and routes that break: who is blamed, left out, and tried again."""

from __future__ import annotations

from shoal.membership.events import (
    Left,
    RouteBroken,
    StageFailed,
    StageLinked,
)
from shoal.membership.instructions import Cut, Instruction, LoadStage, RestStage, Serve
from shoal.membership.route_machine import WAITING
from tests.support.membership import (
    OnePipeline,
    finish,
    joined,
    linking,
    load,
    loading,
    loads,
    moving,
    only,
    orders,
    planner,
    serving,
    tick,
)

# Failures


def test_a_node_that_cannot_load_is_left_out_at_once_and_comes_back():
    c = loading(1, 2, 3)
    out = c.handle(StageFailed(1, 1, "no memory"), 0)
    assert set(loads(out)) == {2, 3}
    assert c.pipeline.described(1, 5) == "failed: no memory; tried again in 10 s"
    finish(c)
    c.handle(Left(2, "gone"), 16)
    assert 1 in c.pipeline.route


def test_a_node_that_cannot_load_a_better_split_leaves_the_old_one_serving():
    c = moving()
    out = c.handle(StageFailed(3, 2, "no memory"), 6)
    assert (orders(out), c.pipeline.route, c.pipeline.coming) == ([], [1, 2], None)
    assert c.pipeline.holdings[3].failed


def test_a_link_that_fails_once_is_tried_again_with_the_same_nodes():
    c = linking(1, 2, 3)
    assert loads(c.handle(StageFailed(1, 1, "refused"), 0)) == {1: (0, 2), 2: (2, 4)}
    assert c.pipeline.epoch == 2


def test_a_link_that_fails_again_and_again_is_taken_from_another_node():
    c = linking(1, 2, 3)
    out: list[Instruction] = []
    for _ in range(4):
        out = c.handle(StageFailed(1, c.pipeline.epoch, "refused"), 0)
        load(c)
    assert c.pipeline.holdings[1].failed == "refused"
    assert 1 not in loads(out)


def test_a_route_that_broke_with_no_one_lost_is_tried_again_as_it_was():
    c = serving(1, 2)
    out = c.handle(RouteBroken(1, "eof"), 1)
    assert orders(out) == [Cut(1, "eof")]
    assert c.pipeline.confirming
    assert orders(tick(c, 1.2)) == []
    out = tick(c, 1.4)
    assert {i.node: i.keep for i in out if isinstance(i, LoadStage)} == {1: range(2), 2: range(2, 4)}
    (serve,) = only(finish(c, 2), Serve)
    assert isinstance(serve, Serve)
    assert (serve.epoch, serve.spans) == (2, ())


def test_a_loss_that_is_learnt_right_after_the_route_broke_is_mended_at_once():
    c = serving(1, 2, 3)
    c.handle(RouteBroken(1, "eof"), 1)
    assert loads(c.handle(Left(2, "gone"), 1.1)) == {1: (0, 2), 3: (2, 4)}


def test_who_joins_right_after_the_route_broke_does_not_preempt_the_loss():
    c = serving(1, 2)
    c.handle(RouteBroken(1, "eof"), 1)
    assert orders(c.handle(joined(3), 1.1)) == []


def broken_again_and_again(c: OnePipeline, times: int, now: float = 10) -> float:
    """Each time the route is filled, and breaks at once."""
    for _ in range(times):
        c.handle(RouteBroken(c.pipeline.epoch, "a step failed"), now)
        while c.pipeline.coming is None:
            tick(c, now := now + 0.5)
        finish(c, now)
    return now


def test_a_route_that_breaks_whenever_it_serves_is_not_tried_for_ever():
    """Its layers can be filled, so each time it serves for a moment."""
    c = serving(1, 2, 3)
    broken_again_and_again(c, 4)
    assert [n for n, m in c.pipeline.holdings.items() if m.failed] != []


def test_routes_that_break_once_in_a_while_are_nobodys_fault():
    c, now = serving(1, 2, 3), 0.0
    for _ in range(8):
        now = broken_again_and_again(c, 1, now)
        tick(c, now := now + 100)
    assert [n for n, m in c.pipeline.holdings.items() if m.failures] == []


def test_everyone_on_a_route_that_breaks_is_blamed_in_turn():
    """Who is at fault is not known; blaming the first one alone would never leave out the last."""
    c = serving(1, 2, 3)
    broken_again_and_again(c, 12)
    assert [m.failures for m in c.pipeline.holdings.values()] == [1, 1, 1]


def test_nodes_that_are_lost_one_after_the_other_are_nobody_elses_fault():
    """As a rule the route is seen to break a moment before the node is seen to be gone."""
    c = serving(1, 2)
    for node in range(2, 8):
        c.handle(joined(node + 1), node)
        c.handle(RouteBroken(c.pipeline.epoch, "eof"), node)
        c.handle(Left(node, "gone"), node + 0.1)
        finish(c, node + 0.2)
    assert [m.failures for m in c.pipeline.holdings.values()] == [0, 0]


def test_one_more_failure_does_not_blame_the_next_node_at_once():
    c = linking(1, 2, 3)
    for _ in range(4):
        c.handle(StageFailed(1, c.pipeline.epoch, "refused"), 0)
        load(c)
    c.handle(StageFailed(c.pipeline.route[0], c.pipeline.epoch, "refused"), 0)
    assert [n for n, m in c.pipeline.holdings.items() if m.failed] == [1]


def test_a_node_that_served_again_is_no_longer_called_failed():
    c = loading(1, 2)
    c.handle(StageFailed(1, 1, "no memory"), 0)
    assert c.pipeline.state == WAITING
    assert "n1 failed: no memory" in c.pipeline.why
    tick(c, 15.5)
    finish(c, 16)
    assert c.pipeline.described(1, 16) == "serving"


def test_who_fails_again_is_left_out_for_longer():
    c = loading(1, 2)
    waits: list[float] = []
    now = 0.0
    for _ in range(8):
        c.handle(StageFailed(1, c.pipeline.epoch, "no memory"), now)
        waits.append(c.pipeline.holdings[1].retry - now)
        tick(c, now := c.pipeline.holdings[1].retry)
    assert waits == [15, 30, 60, 120, 240, 480, 600, 600]


# Deadlines


def test_who_is_late_again_and_again_is_left_out():
    c, now = linking(1, 2, 3), 0.0
    for _ in range(4):
        c.handle(StageLinked(1, c.pipeline.epoch), now)
        tick(c, now := now + 21)
        load(c, now)
    assert [n for n, m in c.pipeline.holdings.items() if m.failed] == [2]
    assert c.pipeline.route == [1, 3]


def test_a_node_that_was_linked_but_never_filled_rests_when_it_is_left_out():
    """It holds a KV pool: nothing of it is good, but its memory is taken."""
    c = linking(1, 2, 3)
    c.handle(Left(2, "gone"), 0)
    c.handle(joined(4), 0)
    planner(c).alone = True
    assert 1 in c.pipeline.route
    c.handle(StageFailed(1, c.pipeline.epoch, "no memory"), 0)
    assert 1 not in c.pipeline.route
    assert RestStage(1, c.pipeline.epoch) in load(c)
