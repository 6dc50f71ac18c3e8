"""Nodes that are lost or fall silent: who takes their layers, and who is held off."""

from __future__ import annotations

import pytest

from shoal.membership.events import (
    Heard,
    Joined,
    Left,
    Tick,
)
from shoal.membership.instructions import Cut, LoadStage, RefuseNode, Serve
from shoal.membership.member import Departure
from shoal.membership.route_machine import LOADING, PAUSING, SERVING, WAITING
from shoal.placement.profile import NodeProfile
from tests.support.membership import finish, joined, link, linking, load, loading, loads, moving, only, orders, reports, serving, tick

# Loss


def test_a_spare_takes_what_was_lost_and_the_others_keep_theirs():
    c = serving(1, 2, 3)
    out = c.handle(Left(1, "gone"), 0)
    assert orders(out) == [
        Cut(1, "n1 left: gone"),
        LoadStage(3, 2, 0, 2, 0, 2, range(0), 64),
        LoadStage(2, 2, 1, 2, 2, 4, range(2, 4), 64),
    ]
    (serve,) = only(finish(c), Serve)
    assert isinstance(serve, Serve)
    assert serve.spans == ((0, 2),)


def test_a_neighbour_takes_what_was_lost():
    c = serving(1, 2)
    assert loads(c.handle(Left(2, "gone"), 0)) == {1: (0, 4)}
    (serve,) = only(finish(c), Serve)
    assert isinstance(serve, Serve)
    assert serve.spans == ((2, 4),)


def test_losing_what_nothing_can_replace_waits_for_another():
    c = serving(1, 2, alone=False)
    c.handle(Left(2, "gone"), 0)
    assert (c.pipeline.state, c.pipeline.route, c.pipeline.placement) == (WAITING, [], None)
    assert loads(c.handle(joined(3), 0)) == {1: (0, 2), 3: (2, 4)}


def test_losing_a_spare_changes_nothing():
    c = serving(1, 2, 3)
    assert orders(c.handle(Left(3, "gone"), 0)) == []
    assert c.pipeline.state == SERVING


def test_leaving_twice_is_leaving_once():
    c = serving(1, 2)
    c.handle(Left(2, "gone"), 0)
    assert c.handle(Left(2, "gone"), 0) == []


@pytest.mark.parametrize("begin", [loading, linking])
def test_a_loss_before_the_route_is_opened_cuts_nothing(begin: type):
    c = begin(1, 2, 3)
    out = c.handle(Left(1, "gone"), 0)
    assert only(out, Cut) == []
    assert loads(out) == {2: (0, 2), 3: (2, 4)} or loads(out) == {3: (0, 2), 2: (2, 4)}
    assert finish(c)


def test_a_loss_while_it_fills_cuts_the_route_and_keeps_what_was_good():
    c = serving(1, 2, 3, 4)
    c.handle(Left(1, "gone"), 0)
    load(c)
    link(c)
    out = c.handle(Left(3, "gone"), 0)
    assert only(out, Cut) == [Cut(2, "n3 left: gone")]
    assert [i.keep for i in out if isinstance(i, LoadStage)] == [range(0), range(2, 4)]


def test_a_node_that_was_being_filled_has_nothing_good():
    c = serving(1, 2, 3, 4)
    c.handle(Left(1, "gone"), 0)
    load(c)
    link(c)
    c.handle(Left(2, "gone"), 0)  # 3 was being filled
    (serve,) = only(finish(c), Serve)
    assert isinstance(serve, Serve)
    assert serve.spans == ((0, 4),)


def test_what_is_being_moved_may_be_lost_while_the_old_route_serves_on():
    c = moving()
    out = c.handle(Left(3, "gone"), 6)
    assert orders(out) == []
    assert (c.pipeline.state, c.pipeline.route, c.pipeline.coming) == (SERVING, [1, 2], None)
    assert "given up" in reports(out)


def test_a_loss_while_it_pauses_takes_the_old_route_again():
    c = moving(PAUSING)
    out = c.handle(Left(3, "gone"), 6)
    assert only(out, Cut) == [Cut(1, "n3 left: gone")]
    assert {i.node: i.keep for i in out if isinstance(i, LoadStage)} == {1: range(2), 2: range(2, 4)}


@pytest.mark.parametrize("phase", [LOADING, PAUSING])
def test_losing_a_stage_that_serves_ends_the_move_too(phase: str):
    c = moving(phase)
    out = c.handle(Left(1, "gone"), 6)
    assert only(out, Cut) == [Cut(1, "n1 left: gone")]
    assert (c.pipeline.serving, c.pipeline.state) == (None, LOADING)
    assert set(loads(out)) == {2, 3}


def test_several_that_fall_silent_together_are_lost_at_once():
    c = serving(1, 2, 3, 4)
    out = tick(c, 9, silent=[1, 2])
    assert only(out, RefuseNode) == [RefuseNode(1, "no heartbeat came", True), RefuseNode(2, "no heartbeat came", True)]
    assert set(loads(out)) == {3, 4}
    assert c.pipeline.epoch == 2


def test_all_are_lost_and_one_comes_back():
    c = serving(1, 2)
    tick(c, 9, silent=[1, 2])
    assert (c.pipeline.state, c.members) == (WAITING, {})
    assert loads(c.handle(joined(5), 9)) == {5: (0, 4)}


# Silence


def test_a_node_is_suspected_after_half_the_silence():
    c = serving(1, 2)
    assert tick(c, 4, silent=[2]) == []
    out = tick(c, 4.5, silent=[2])
    assert (orders(out), reports(out)) == ([], "n2 has been silent for 4.5 s; it is given up at 8 s")
    assert tick(c, 5, silent=[2]) == []
    assert c.pipeline.described(2, 5) == "silent for 5.0 s; given up at 8 s"


def test_who_is_heard_again_is_no_longer_suspected():
    c = serving(1, 2)
    tick(c, 5, silent=[2])
    assert reports(c.handle(Heard(2), 6)) == "n2 is heard again"
    tick(c, 13.5, silent=[1, 2])
    assert set(c.members) == {2}


def test_silence_is_a_loss_and_a_heartbeat_prevents_it():
    c = serving(1, 2)
    c.handle(Heard(1), 7)
    assert orders(c.handle(Tick(), 8)) == []
    out = c.handle(Tick(), 9)
    assert RefuseNode(2, "no heartbeat came", True) in out
    assert set(c.members) == {1}


def test_who_keeps_getting_lost_is_held_off():
    c = serving(1, 2, 3)
    for i in range(3):
        c.handle(Left(3 + i, "its connection ended"), i)
        c.handle(Joined(4 + i, 0, NodeProfile("n3", 1, 1.0, 1.0), "host", 3, "1"), i)
    assert c.pipeline.described(6, 2) == "held off for 4 s: it was lost 3 times"
    assert loads(c.handle(Left(1, "gone"), 2)) == {2: (0, 4)}


def test_who_was_held_off_comes_back():
    c = serving(1, 2, alone=False)
    for i in range(2):
        c.handle(Left(2 + i, "gone"), 0)
        c.handle(Joined(3 + i, 0, NodeProfile("n2", 1, 1.0, 1.0), "host", 2, "1"), 0)
    assert (c.pipeline.state, tick(c, 1)) == (WAITING, [])
    assert c.pipeline.described(4, 1) == "held off for 1 s: it was lost 2 times"
    assert set(loads(tick(c, 2.1))) == {1, 4}


# Deadlines


def test_nodes_that_fall_silent_together_are_not_asked_to_load():
    """_tick handles them one by one: the second one is still a member when the first one's route is replaced."""
    c = serving(1, 2, 3)
    c.handle(joined(4), 8.5)
    c.members[3].heard = 8.5
    out = c.handle(Tick(), 9)
    assert {i.node for i in out if isinstance(i, LoadStage)} == {3, 4}
    assert c.pipeline.epoch == 2


# What programs are told


def test_each_state_of_a_member_has_a_word():
    c = serving(1, 2, 3)
    assert [c.pipeline.condition(node, 0) for node in (1, 2, 3)] == ["serving", "serving", "idle"]
    c.members[2].suspect = True
    c.members[3].draining = True
    assert [c.pipeline.condition(node, 0) for node in (1, 2, 3)] == ["serving", "suspected", "draining"]
    c.pipeline.holdings[1].blame("no memory", 0)
    assert c.pipeline.condition(1, 0) == "failed"
    assert loading(1, 2).pipeline.condition(1, 0) == "loading"
    assert linking(1, 2).pipeline.condition(1, 0) == "linking"


def test_a_member_that_is_held_off_is_not_called_idle():
    c = serving(1, 2, 3)
    for node in (3, 4, 5):
        c.handle(Left(node, "gone"), 0)
        c.handle(Joined(node + 1, 9, NodeProfile("n3", 1, 1.0, 1.0), "host", 9, "1"), 0)
    assert c.pipeline.condition(6, 0) == "held off"
    assert c.pipeline.condition(6, 200) == "idle"


def test_why_a_node_is_gone_is_kept_for_a_while():
    c = serving(1, 2, 3)
    c.handle(Left(3, "gone"), 0)
    assert c.members.departed == {3: Departure("gone", False)}
    c.handle(Left(2, "it was removed", graceful=True), 0)
    assert c.members.departed[2] == Departure("it was removed", True)
    c.handle(Left(2, "again"), 0)
    assert c.members.departed[2].reason == "it was removed"
    for node in range(10, 600):
        c.handle(joined(node), 0)
        c.handle(Left(node, "gone"), 0)
    assert len(c.members.departed) == 256 and 599 in c.members.departed and 3 not in c.members.departed
