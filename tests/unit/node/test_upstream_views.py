"""What the head remembers of upstreams: told once by an event, however many report it."""

from __future__ import annotations

from shoal.node.upstream_views import UpstreamViews
from shoal.observed.event import EventKind
from shoal.observed.models import UpstreamModel, UpstreamView
from shoal.telemetry.event_ring import EventRing

URL, OTHER = "http://one/v1", "http://two/v1"
WELL = UpstreamView(URL, "", [UpstreamModel("far", 100)])
AWAY = UpstreamView(URL, "it cannot be reached", [UpstreamModel("far", 100)])


def test_each_change_is_one_event() -> None:
    ring = EventRing(lambda: 0.0)
    views = UpstreamViews(ring, [URL, OTHER])
    assert [view.state for view in views.all] == ["it has not been asked yet"] * 2 and views.models == []
    for view in (WELL, WELL, AWAY, AWAY, WELL):  # as two workers report them
        views.changed(view)
    assert [(event.kind, "far" in event.message or "reached" in event.message) for event in ring] == [
        (EventKind.BACK, True),
        (EventKind.AWAY, True),
        (EventKind.BACK, True),
    ]
    assert views.all[0] == WELL and views.models == ["far"]


def test_other_models_are_no_event_but_are_known() -> None:
    ring = EventRing(lambda: 0.0)
    views = UpstreamViews(ring, [URL, OTHER])
    views.changed(WELL)
    views.changed(UpstreamView(URL, "", [UpstreamModel("new")]))
    views.changed(UpstreamView(OTHER, "", [UpstreamModel("new"), UpstreamModel("more")]))
    assert len([*ring]) == 2 and views.models == ["new", "more"]


def test_one_that_is_away_from_the_beginning_is_told() -> None:
    ring = EventRing(lambda: 0.0)
    UpstreamViews(ring, [URL]).changed(UpstreamView(URL, "it cannot be reached"))
    assert [event.kind for event in ring] == [EventKind.AWAY]
