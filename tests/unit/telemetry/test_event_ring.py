"""The latest events of a cluster, and what is counted together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.observed.event import WARNINGS, EventKind
from shoal.telemetry.event_ring import EventRing
from shoal.telemetry.gathering import Gathering

A, B = EventKind.JOINED, EventKind.LOST


def test_a_page_follows_another_without_a_gap() -> None:
    ring = EventRing(lambda: 7.0)
    for i in range(5):
        ring.add(A if i % 2 else B, f"{i}", "n" if i else "", {"tokens": i})
    first = ring.page()
    assert [event.number for event in first.events] == [1, 2, 3, 4, 5] and (first.latest, first.oldest) == (5, 1)
    assert ring.page(after=first.latest).events == []
    ring.add(A, "more")
    (more,) = ring.page(after=first.latest).events
    assert (more.number, more.at, more.message) == (6, 7.0, "more")


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.sampled_from("xy"))), st.integers(0, 30), st.integers(1, 30), st.integers(1, 10))
def test_a_page_is_the_latest_of_what_is_asked_for(added: list[tuple[EventKind, str]], after: int, limit: int, keep: int) -> None:
    ring = EventRing(lambda: 0.0, keep)
    events = [ring.add(kind, "", node) for kind, node in added]
    kept = events[-keep:] if events else []
    wanted = [event for event in kept if event.number > after and event.kind is A and event.node == "x"]
    page = ring.page(after, limit, [A], "x")
    assert page.events == wanted[-limit:]
    assert (page.latest, page.oldest) == (len(events), kept[0].number if kept else 0)
    assert [*ring] == kept == [*reversed([*reversed(ring)])]


def test_what_happens_often_is_told_at_once_and_then_together() -> None:
    often = Gathering[str](10.0)
    often.add("full")
    assert often.due(100.0) == [("full", 1)]
    often.add("full", 4)
    often.add("full")
    assert often.due(105.0) == []
    assert often.due(110.0) == [("full", 5)] and often.due(200.0) == []
    often.add("nothing", 0)
    assert often.due(300.0) == []


def test_every_warning_is_a_kind() -> None:
    assert set(EventKind) > WARNINGS
