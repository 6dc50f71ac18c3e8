"""Who is taken in, who takes an earlier membership's place, and who is refused."""

from __future__ import annotations

import pytest

from shoal.membership.admission import AdmissionRules
from shoal.membership.events import (
    Joined,
)
from shoal.membership.instructions import Cut, RefuseNode
from shoal.membership.route_machine import SERVING
from tests.support.membership import cluster, dealt, finish, joined, loads, only, orders, planner, reports, serving


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (joined(1, "2"), "install the same version"),
        (joined(1, memory=9), "raise --memory"),
        (joined(1, memory=20, speed=0.1), "GB/s"),
    ],
)
def test_who_does_not_fit_is_refused_and_not_counted(event: Joined, why: str):
    c = cluster(1, AdmissionRules(min_memory=10, min_speed=1.0))
    (refuse,) = orders(c.handle(event, 0))
    assert isinstance(refuse, RefuseNode)
    assert why in refuse.reason and not refuse.again
    assert c.members == {}


def test_no_more_than_the_most_nodes_are_taken_in():
    c = cluster(2, AdmissionRules(max_nodes=1))
    assert orders(c.handle(joined(1), 0)) == []
    assert "takes no more" in reports(c.handle(joined(2), 0))


def test_a_node_that_is_started_anew_ends_its_ghost():
    c = serving(1, 2)
    out = c.handle(joined(3, port=2), 0)
    assert set(c.members) == {1, 3}
    assert "n2 left: it was started anew" in reports(out)
    assert only(out, Cut) != []
    assert finish(c) and c.pipeline.state == SERVING


def test_a_node_that_comes_back_before_it_was_missed_ends_its_earlier_membership():
    c = serving(1, 2)
    assert "n2 left: it came back" in reports(c.handle(joined(3, port=2, start=22), 0))
    assert set(c.members) == {1, 3}


def test_a_node_that_is_started_anew_takes_its_ghosts_place_in_a_full_cluster():
    c = cluster(2, AdmissionRules(max_nodes=2))
    c.handle(joined(1), 0)
    c.handle(joined(2), 0)
    assert only(c.handle(joined(3, port=2), 0), RefuseNode) == []
    assert set(c.members) == {1, 3}


def test_a_node_that_joins_while_it_serves_is_a_spare():
    c = serving(1, 2)
    assert orders(c.handle(joined(3), 0)) == []
    assert c.pipeline.described(3, 0) == "idle, ready to take over"


def test_a_node_that_makes_it_better_is_made_ready_while_it_serves():
    c = serving(1, 2)
    planner(c).better = dealt(("n1", 0, 2), ("n3", 2, 4))
    c.handle(joined(3), 1)
    assert c.pipeline.coming is None  # it moved a moment ago
    out = c.handle(joined(4), 6)
    assert loads(out) == {1: (0, 2), 3: (2, 4)}
    assert (c.pipeline.state, c.pipeline.moving) == (SERVING, "layers are being moved (loading)")
