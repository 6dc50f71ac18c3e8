"""How much of the time each resource was busy."""

from __future__ import annotations

from shoal.placement.timeline import WAITING, Span, busy, last, utilisation

SPANS = [Span("disk", "a", 0, 0.0, 2.0), Span("disk", "b", 0, 1.0, 3.0), Span("processor", "c", 0, 3.0, 4.0)]


def test_what_overlaps_is_counted_once():
    assert busy(SPANS) == 4.0
    assert busy([SPANS[2], SPANS[0]]) == 3.0
    assert busy([]) == 0.0


def test_utilisation_is_the_part_of_the_whole_time():
    assert utilisation(SPANS) == {"disk": 0.75, "processor": 0.25}
    assert utilisation([]) == {}
    assert utilisation([Span("disk", "a", 0, 1.0, 1.0)]) == {"disk": 0.0}


def test_who_waits_is_not_busy():
    assert utilisation([Span("processor", WAITING, 0, 0.0, 3.0), Span("processor", "c", 0, 3.0, 4.0)]) == {"processor": 0.25}


def test_the_last_seconds():
    assert last(SPANS, 1.5) == [Span("disk", "b", 0, 2.5, 3.0), SPANS[2]]
    assert last([], 1.0) == []
