"""What a head remembers for operators."""

from __future__ import annotations

import pytest

from shoal.observed.event import EventKind
from shoal.pipeline.timing import StepTiming
from shoal.scheduler.plan import StageTrace
from shoal.telemetry.recorder import RATE, Recorder, RouteRecorder
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(50.0)


@pytest.fixture
def recorder(clock: Clock) -> Recorder:
    return Recorder(clock, 1000.0)


@pytest.fixture
def record(recorder: Recorder) -> RouteRecorder:
    return RouteRecorder(recorder, "m/1")


def timing(sampled: int = 1, stages: int = 1) -> StepTiming:
    return StepTiming(1, sampled, 0, 0, 0, 0.5, 0, (StageTrace(0, 0, 0.3 / stages, 0, 0, 1.0),) * stages, sent=1.0)


def test_the_rate_is_of_the_last_seconds(clock: Clock, record: RouteRecorder) -> None:
    assert record.tokens_per_second == 0
    record.step(timing(5))
    assert record.tokens_per_second == 5  # after less than a second
    clock.now += 5
    assert record.tokens_per_second == 1
    clock.now += RATE
    record.step(timing(20))
    assert record.tokens_per_second == 20 / RATE


def test_hops_begin_anew_with_a_route(record: RouteRecorder) -> None:
    assert sum(record.step(timing())) == pytest.approx(0.2)
    assert [len(kept) for kept in record.hops] == [1, 1]
    record.route(2, ["a", "b"])
    assert record.hops == ()
    record.step(timing(stages=2))
    assert [len(kept) for kept in record.hops] == [1, 1, 1]


def test_a_recovery_names_the_node_that_was_lost(clock: Clock, recorder: Recorder, record: RouteRecorder) -> None:
    recorder.events.add(EventKind.LOST, "old left", "old", {"silence": 9.0})
    clock.now += 20
    recorder.events.add(EventKind.LOST, "b left: silent", "b", {"silence": 2.5})
    clock.now += 3
    record.resumed("b left: silent", clock.now - 3, clock.now, {"load": 2.0}, 64)
    told = [*recorder.events][-1]
    assert (told.kind, told.node) == (EventKind.RESUMED, "b")
    assert told.figures == {"load": 2.0, "pause": pytest.approx(3.0), "tokens": 64.0}
    assert told.message == "streams go on after 3.00 s: b left: silent"


def test_a_move_that_was_wanted_names_nobody(clock: Clock, recorder: Recorder, record: RouteRecorder) -> None:
    record.resumed("layers are moved", clock.now - 1, clock.now, {}, 0)
    assert [*recorder.events][-1].node == ""


def test_counts_become_events_and_a_new_route_counts_anew(clock: Clock, recorder: Recorder, record: RouteRecorder) -> None:
    record.counted(2, 0)
    recorder.tell()
    assert [(event.kind, event.figures) for event in recorder.events] == [(EventKind.PREEMPTED, {"count": 2})]
    record.route(2, ["a"])
    clock.now += 11
    record.counted(2, 0)  # the same scheduler goes on
    recorder.tell()
    assert len([*recorder.events]) == 1
    record.counted(1, 3)  # another one
    recorder.rejected.add("too many (status 429, chat)", 7)
    clock.now += 11
    recorder.tell()
    assert {event.kind: event.figures["count"] for event in [*recorder.events][1:]} == {
        EventKind.PREEMPTED: 1,
        EventKind.CACHE: 3,
        EventKind.REJECTED: 7,
    }
    assert recorder.lines(1)[0].endswith("7 request(s) were refused: too many (status 429, chat)")
