"""What the disk and the processor did, by a clock that the test turns."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.placement.timeline import WAITING, Span
from shoal.weights.activity import Activity, WatchedSource
from tests.support.clock import Clock
from tests.unit.weights.faulty_source import FaultySource


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def activity(clock: Clock) -> Activity:
    return Activity(clock, kept=4)


def test_the_processor_turns_from_one_thing_to_the_next(activity: Activity, clock: Clock):
    for at, what in ((1.0, "attention"), (3.0, WAITING), (3.5, "experts"), (6.0, "")):
        clock.now = at
        activity.turn(what, 2)
        assert activity.computes == (what not in ("", WAITING))
    clock.now = 9.0
    activity.turn("head")
    assert (activity.sums.computing, activity.sums.waiting) == (4.5, 0.5)
    assert activity.spans == [
        Span("processor", "attention", 2, 1.0, 3.0),
        Span("processor", WAITING, 2, 3.0, 3.5),
        Span("processor", "experts", 2, 3.5, 6.0),
    ]


def test_reads_that_overlap_are_counted_once(activity: Activity, clock: Clock):
    first = activity.read_begins()
    clock.now = 2.0
    second = activity.read_begins()
    clock.now = 3.0
    activity.read_ends("experts", 0, first, 100)
    assert activity.sums.reading == 3.0
    clock.now = 5.0
    assert activity.sums.reading == 5.0, "one is still under way"
    activity.read_ends("experts", 0, second, 50)
    clock.now = 7.0
    sums = activity.sums
    assert (sums.reading, sums.nbytes, sums.reads) == (5.0, 150, 2)


def test_only_the_last_spans_are_kept(activity: Activity, clock: Clock):
    for at in range(10):
        clock.now = float(at)
        activity.turn("attention", at)
    assert [span.layer for span in activity.spans] == [5, 6, 7, 8]
    assert activity.sums.computing == 9.0


def test_a_source_is_watched_whether_it_reads_or_fails(activity: Activity):
    source = WatchedSource(FaultySource(bytes(8), at_once=3, broken=[5]), activity, "constant", 1)
    memory = memoryview(bytearray(8))
    assert source.read_into(0, memory) == 3
    with pytest.raises(OSError, match="Input/output"):
        source.read_into(5, memory)
    assert source.path == Path("weights")
    assert (activity.sums.nbytes, activity.sums.reads) == (3, 2)
