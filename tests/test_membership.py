"""The cluster's state machine: events in, instructions out; nothing of an old epoch counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import NotEnoughMemory
from shoal.membership.events import Heard, Joined, Left, RouteBroken, StageFailed, StageLinked, StageLoaded, Tick
from shoal.membership.instructions import Abandon, Instruction, LinkStage, LoadStage, Refuse, Report, Serve, UnloadStage
from shoal.membership.state import LINKING, LOADING, SERVING, WAITING, Cluster
from shoal.placement.partition import Placement, StagePlan
from shoal.placement.profile import NodeProfile


def halves(profiles: list[NodeProfile]) -> Placement:
    """The first two nodes by name, a layer each; two are needed."""
    if len(profiles) < 2:
        raise NotEnoughMemory(2, 1)
    names = sorted(p.name for p in profiles)[:2]
    return Placement(tuple(StagePlan(n, i, i + 1, 1, 1.0, 1.0) for i, n in enumerate(names)), 64, 0.0, 1)


def cluster(min_nodes: int = 2) -> Cluster:
    return Cluster("1", min_nodes, halves, silence=8)


def joined(node: int, version: str = "1") -> Joined:
    return Joined(node, node * 11, NodeProfile(f"n{node}", 1, 1.0, 1.0), "host", 1, version)


def orders(out: list[Instruction]) -> list[Instruction]:
    return [i for i in out if not isinstance(i, Report)]


def loading(*nodes: int) -> Cluster:
    c = cluster()
    for n in nodes:
        c.handle(joined(n), 0)
    assert c.state == LOADING
    return c


def serving(*nodes: int) -> Cluster:
    c = loading(*nodes)
    for n in list(c.route):
        c.handle(StageLoaded(n, c.epoch, 5, "native"), 0)
    for n in list(c.route):
        c.handle(StageLinked(n, c.epoch), 0)
    assert c.state == SERVING
    return c


def test_it_waits_for_enough_nodes():
    c = cluster()
    assert orders(c.handle(joined(1), 0)) == []
    assert (c.state, c.why) == (WAITING, "1 of 2 nodes have joined")


def test_with_enough_nodes_each_loads_its_layers():
    c = cluster()
    c.handle(joined(1), 0)
    assert orders(c.handle(joined(2), 0)) == [LoadStage(1, 1, 0, 2, 0, 1, 64), LoadStage(2, 1, 1, 2, 1, 2, 64)]


def test_links_follow_when_all_have_loaded():
    c = loading(1, 2)
    assert c.handle(StageLoaded(1, 1, 5, "native"), 0) == []
    assert c.handle(StageLoaded(1, 1, 5, "native"), 0) == []
    assert c.handle(StageLoaded(2, 1, 6, "native"), 0) == [LinkStage(1, 1, 2), LinkStage(2, 1, None)]
    assert (c.state, c.members[2].weight_bytes) == (LINKING, 6)


def test_it_serves_when_all_are_linked():
    c = loading(1, 2)
    for n in (1, 2):
        c.handle(StageLoaded(n, 1, 5, "native"), 0)
    assert c.handle(StageLinked(2, 1), 0) == []
    (serve,) = c.handle(StageLinked(1, 1), 0)
    assert isinstance(serve, Serve)
    assert (serve.epoch, serve.first) == (1, 1)


def test_another_version_is_refused_and_not_counted():
    c = cluster(1)
    (refuse,) = c.handle(joined(1, "2"), 0)
    assert isinstance(refuse, Refuse)
    assert c.members == {}


def test_what_belongs_to_an_old_epoch_is_dropped():
    c = serving(1, 2, 3)
    c.handle(Left(1, "gone"), 0)
    assert (c.epoch, c.state) == (2, LOADING)
    for old in (StageLoaded(2, 1, 1, ""), StageLinked(2, 1), StageFailed(2, 1, "x"), RouteBroken(1, "x", True)):
        assert c.handle(old, 0) == []
    assert (c.epoch, c.state) == (2, LOADING)


def test_what_comes_from_nodes_outside_the_route_is_dropped():
    c = loading(1, 2)
    c.handle(joined(3), 0)
    for stray in (StageLoaded(3, 1, 1, ""), StageLinked(3, 1), StageFailed(3, 1, "x"), StageFailed(99, 1, "x")):
        assert c.handle(stray, 0) == []


def test_a_link_before_all_have_loaded_does_not_count():
    c = loading(1, 2)
    assert c.handle(StageLinked(1, 1), 0) == []
    assert c.state == LOADING


def test_losing_a_stage_abandons_the_route_and_loads_another():
    out = orders(serving(1, 2, 3).handle(Left(1, "gone"), 0))
    assert [type(i) for i in out] == [Abandon, UnloadStage, LoadStage, LoadStage]
    assert out[1] == UnloadStage(2, 1)
    assert {i.node for i in out if isinstance(i, LoadStage)} == {2, 3}


def test_losing_a_stage_without_a_spare_waits():
    c = serving(1, 2)
    c.handle(Left(2, "gone"), 0)
    assert (c.state, c.route, c.placement) == (WAITING, [], None)
    assert [type(i) for i in orders(c.handle(joined(3), 0))] == [LoadStage, LoadStage]


def test_losing_a_spare_changes_nothing():
    c = serving(1, 2, 3)
    assert orders(c.handle(Left(3, "gone"), 0)) == []
    assert c.state == SERVING


def test_leaving_twice_is_leaving_once():
    c = serving(1, 2)
    c.handle(Left(2, "gone"), 0)
    assert c.handle(Left(2, "gone"), 0) == []


def test_a_node_that_failed_is_left_out_until_it_joins_anew():
    c = loading(1, 2, 3)
    out = orders(c.handle(StageFailed(1, 1, "no memory"), 0))
    assert {i.node for i in out if isinstance(i, LoadStage)} == {2, 3}
    c.handle(Left(2, "gone"), 0)
    assert c.state == WAITING
    assert "no memory" in c.why
    c.handle(joined(4), 0)
    assert c.route == [3, 4]


def test_a_broken_route_is_tried_again_in_a_new_epoch():
    c = serving(1, 2)
    out = orders(c.handle(RouteBroken(1, "eof", True), 0))
    assert isinstance(out[0], Abandon)
    assert (c.epoch, c.state) == (2, LOADING)


def test_a_route_that_breaks_before_it_serves_abandons_nothing():
    out = orders(loading(1, 2, 3).handle(Left(1, "gone"), 0))
    assert not any(isinstance(i, Abandon) for i in out)


def test_silence_is_a_loss_and_a_heartbeat_prevents_it():
    c = serving(1, 2)
    c.handle(Heard(1), 7)
    assert c.handle(Tick(), 8) == []
    out = c.handle(Tick(), 9)
    assert Refuse(2, "no heartbeat came") in out
    assert set(c.members) == {1}


def test_memory_that_does_not_suffice_is_said():
    c = cluster(1)
    c.handle(joined(1), 0)
    assert c.state == WAITING
    assert "not enough memory" in c.why


EVENTS = st.one_of(
    st.builds(joined, st.integers(1, 4)),
    st.builds(Left, st.integers(1, 4), st.just("gone")),
    st.builds(Heard, st.integers(1, 4)),
    st.builds(StageLoaded, st.integers(1, 4), st.integers(1, 6), st.just(1), st.just("native")),
    st.builds(StageLinked, st.integers(1, 4), st.integers(1, 6)),
    st.builds(StageFailed, st.integers(1, 4), st.integers(1, 6), st.just("x")),
    st.builds(RouteBroken, st.integers(1, 6), st.just("x"), st.booleans()),
    st.just(Tick()),
)


@given(st.lists(st.tuples(EVENTS, st.floats(0, 3)), max_size=60))
def test_whatever_happens_the_epoch_only_grows_and_routes_are_of_members(events: list[tuple[object, float]]):
    c, now, known = cluster(), 0.0, set[int]()
    for event, wait in events:
        if isinstance(event, Joined) and event.node in known:
            continue  # every start of a node has an id of its own
        known |= {event.node} if isinstance(event, Joined) else set()
        now, before = now + wait, c.epoch
        out = c.handle(event, now)  # type: ignore[arg-type]
        assert c.epoch >= before
        assert all(i.epoch > before for i in out if isinstance(i, LoadStage))
        assert set(c.route) <= set(c.members)
        assert (c.state == WAITING) == (c.route == []) == (c.placement is None)
