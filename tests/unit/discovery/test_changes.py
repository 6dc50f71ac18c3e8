"""The events between two states of a cluster, and a reader who follows them."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.discovery.changes import Change, ChangeKind, TopologyView, applied, changes
from shoal.discovery.topology import JOINING, MOST_NODES, NodeLoad, RequestLoad, RouteRecord, RouteState, Topology, decoded
from shoal.membership.member import Departure
from tests.support.topologies import HEAD, node, topologies, topology

HEADS = (HEAD, "other")


def kinds(before: Topology | None, now: Topology) -> list[tuple[str, str | None]]:
    return [(change.kind, change.node) for change in changes(before, now)]


def replaced(one: Any, /, **values: Any) -> Any:
    return msgspec.structs.replace(one, **values)


@given(topologies(HEADS), topologies(HEADS))
def test_events_lead_from_any_state_to_any_other(before: Topology, now: Topology):
    told = [decoded(msgspec.json.encode(change), Change) for change in changes(before, now)]
    assert reduce(applied, told, before) == now
    assert bool(told) == (before != now)


@given(topologies())
def test_from_nothing_every_node_joins(now: Topology):
    told = changes(None, now)
    assert sorted(change.node or "" for change in told if change.state is not None) == sorted(now.nodes)
    assert [(change.route, change.others or []) for change in told if change.route is not None] == [(now.route, now.others)]


@given(topologies(), st.data())
def test_load_alone_is_told_by_load_alone(before: Topology, data: st.DataObject):
    nodes = {name: replaced(state, load=NodeLoad(rows=data.draw(st.integers(0, 3)))) for name, state in before.nodes.items()}
    now = Topology(before.route, nodes, others=before.others)
    different = {name for name, state in nodes.items() if state.load != before.nodes[name].load}
    told = changes(before, now)
    assert {change.kind for change in told} <= {ChangeKind.LOAD}
    assert {name for change in told for name in change.loads} == different


a, b = node("a", 1), node("b", 2)


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (topology(), topology(a), [("joined", "a")]),
        (topology(), topology(replaced(a, state=JOINING)), [("joining", "a")]),
        (topology(replaced(a, state=JOINING)), topology(replaced(a, state="idle")), [("joined", "a")]),
        (topology(a), topology(replaced(a, layers="0-29")), [("moved", "a")]),
        (topology(a), topology(replaced(a, experts={"0": "1"})), [("moved", "a")]),
        (topology(a), topology(replaced(a, further={"toy/2": "0-14"})), [("moved", "a")]),
        (topology(a), topology(replaced(a, state="suspected")), [("changed", "a")]),
        (topology(a), topology(replaced(a, state="draining", load=NodeLoad(busy=1.0))), [("changed", "a")]),
        (topology(a, b), topology(b, departed={1: Departure("its connection ended", False)}), [("lost", "a")]),
        (topology(a, b), topology(b, departed={1: Departure("it may leave", True)}), [("left", "a")]),
        (topology(a, b), topology(b), [("left", "a")]),
        (topology(a), topology(replaced(a, number=7), departed={1: Departure("it came back", False)}), [("lost", "a"), ("joined", "a")]),
        (topology(a), topology(replaced(a, head="other")), [("left", "a"), ("joined", "a")]),
        (topology(a), topology(a, epoch=2), [("route", None)]),
        (topology(a), topology(a), []),
    ],
)
def test_what_happened_has_a_name(before: Topology, now: Topology, told: list[tuple[str, str | None]]):
    assert kinds(before, now) == told


def test_why_a_node_is_gone_is_told_in_one_line():
    (change,) = changes(topology(a), topology(departed={1: Departure("step\n3 " + "x" * 500, False)}))
    assert change.reason.startswith("step 3 xx") and len(change.reason.encode()) <= 240


def test_requests_are_part_of_the_load():
    before = topology(a)
    now = Topology(replaced(before.route, requests=RequestLoad(running=3)), before.nodes)
    (change,) = changes(before, now)
    assert (change.kind, change.requests, change.loads) == ("load", RequestLoad(running=3), {})


def test_what_another_pipeline_does_is_told_beside_the_first():
    one, two = topology(a), RouteState(HEAD, "toy", "loading", 2, replica=2)
    serving = replaced(two, state="serving", requests=RequestLoad(running=1))
    busy = replaced(serving, requests=RequestLoad(running=2))
    states = [one, *(Topology(one.route, one.nodes, others=others) for others in ([two], [serving], [busy], []))]
    told = [change for before, now in pairwise(states) for change in changes(before, now)]
    assert [(change.kind, change.route, change.others, change.further) for change in told] == [
        ("route", None, [two], {}),
        ("route", None, [serving], {}),
        ("load", None, None, {"toy/2": RequestLoad(running=2)}),
        ("route", None, [], {}),
    ]
    assert reduce(applied, told[:3], one).others == [busy] and reduce(applied, told, one) == one


def test_the_loads_of_many_nodes_are_told_in_parts():
    before = topology(*(node(f"n{i}", i) for i in range(300)))
    now = topology(*(node(f"n{i}", i, load=NodeLoad(steps=i + 1)) for i in range(300)))
    told = changes(before, now)
    assert [len(change.loads) for change in told] == [128, 128, 44]
    assert reduce(applied, told, before) == now


def test_a_flood_of_joins_is_bounded():
    full = topology(*(node(f"n{i}", i) for i in range(MOST_NODES)))
    after = applied(full, Change("joined", HEAD, 1, "one more", state=node("one more", MOST_NODES)))
    assert after == full
    assert applied(full, Change("changed", HEAD, 1, "n0", state=node("n0", 0, "draining"))).nodes["n0"].state == "draining"


def test_an_event_of_a_newer_version_changes_nothing():
    assert applied(topology(a), Change("promoted", HEAD, 9, "a")) == topology(a)


class Head:
    """Writes and tells as TopologyKeys does."""

    def __init__(self) -> None:
        self.seq = 0
        self.written: Topology | None = None

    def write(self, now: Topology) -> list[Change]:
        found = [*changes(self.written, now), Change(ChangeKind.ALIVE)]
        numbered = [replaced(change, head=now.route.head, seq=self.seq + i) for i, change in enumerate(found, 1)]
        self.seq += len(numbered)
        self.written = now
        return numbered

    def read(self, view: TopologyView) -> list[Change]:
        assert self.written is not None
        return view.read(RouteRecord(self.seq, 15.0, list(self.written.nodes), self.written.route, self.written.others), self.written.nodes)


@given(st.lists(topologies(), min_size=1, max_size=6), st.data())
def test_whoever_reads_late_and_misses_events_knows_the_cluster_in_the_end(states: list[Topology], data: st.DataObject):
    head, view, told = Head(), TopologyView(), list[Change]()
    start = data.draw(st.integers(0, len(states) - 1))
    for i, state in enumerate(states):
        events = head.write(state)
        if i < start:
            continue
        if i == start:
            assert head.read(view) == []
            told = changes(None, state)
            events = events[data.draw(st.integers(0, len(events))) :]  # those that were on their way meanwhile
        for event in events:
            if data.draw(st.booleans(), label="it is lost"):
                continue
            news = view.hear(event)
            told += head.read(view) if news is None else news
    told += head.read(view)
    assert view.topology == states[-1]
    assert reduce(applied, told, topology(head=HEAD)).nodes == states[-1].nodes


def test_what_was_read_is_not_told_again_and_what_was_missed_asks_for_the_keys():
    head, view = Head(), TopologyView()
    assert view.hear(Change("joined", HEAD, 1)) is None  # nothing was read
    early = head.write(topology(a))
    head.read(view)
    assert [view.hear(event) for event in early] == [[]] * len(early)
    missed, seen = head.write(topology(a, b)), head.write(topology(b))
    assert view.hear(seen[0]) is None
    assert [(change.kind, change.node) for change in head.read(view)] == [("left", "a"), ("joined", "b")]
    assert view.hear(missed[0]) == []


def test_another_head_under_the_same_name_is_read_anew():
    head, view = Head(), TopologyView()
    head.write(topology(a))
    head.read(view)
    second = Head()
    (event, *_) = second.write(topology(node("a", 1, head="other"), head="other"))
    assert view.hear(event) is None
    assert [(change.kind, change.node) for change in second.read(view)] == [("left", "a"), ("joined", "a"), ("route", None)]


def test_silence_is_told_once_and_so_is_its_end():
    head, view = Head(), TopologyView()
    assert view.read(None, {}) == []
    head.write(topology(a))
    assert head.read(view) == []  # the first reading is shown as a whole
    assert [change.kind for change in view.read(None, {})] == ["silent"]
    assert view.read(None, {}) == []
    (event,) = head.write(topology(a))
    assert view.hear(event) is None
    assert [change.kind for change in head.read(view)] == ["heard"]


def test_a_head_that_shuts_down_is_not_called_silent():
    head, view = Head(), TopologyView()
    head.write(topology(a))
    head.read(view)
    closed = Change(ChangeKind.CLOSED, HEAD, head.seq + 1)
    assert view.hear(closed) == [closed]
    assert view.read(None, {}) == []
