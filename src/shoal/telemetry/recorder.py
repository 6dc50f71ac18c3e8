"""Everything that a head remembers for operators, fed by what it does anyway."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime

from shoal.observed.event import EventKind
from shoal.pipeline.hops import HopClock
from shoal.pipeline.timing import StepTiming
from shoal.request import TokenChunk
from shoal.telemetry.day import Day
from shoal.telemetry.event_ring import EventRing
from shoal.telemetry.gathering import Gathering
from shoal.telemetry.timelines import Recovery, Timelines

RATE = 10.0
"""Seconds over which tokens per second are measured."""
_GATHER = 10.0  # seconds for which what happens often is counted together
_CAUSES = {EventKind.LOST, EventKind.LEFT, EventKind.FAILED}
_LEAD = 1.0  # seconds by which the loss of a node may be noticed before the route that it breaks


class Recorder:
    def __init__(self, now: Callable[[], float], wall: float) -> None:
        """now: the head's monotonic clock. wall: seconds since 1970 at which it was 0."""
        self.now, self.wall = now, wall
        self.started = self.at
        self.events = EventRing(lambda: self.at)
        self.timelines = Timelines(wall)
        self.day = Day(self.at)
        self.rejected = Gathering[str](_GATHER)
        """Why requests were refused."""
        self.often = Gathering[EventKind](_GATHER)

    @property
    def at(self) -> float:
        """Seconds since 1970."""
        return self.wall + self.now()

    def sampled(self, chunks: Sequence[TokenChunk]) -> None:
        self.timelines.sampled(chunks, self.now())

    def tell(self) -> None:
        """Makes events of what was counted, every few seconds."""
        now = self.now()
        for kind, count in self.often.due(now):
            words = {
                EventKind.PREEMPTED: f"{count} sequence(s) gave up their KV blocks to others and are computed again later",
                EventKind.CACHE: f"{count} KV block(s) of kept prompts were given up for new ones",
            }
            self.events.add(kind, words[kind], figures={"count": count})
        for why, count in self.rejected.due(now):
            self.events.add(EventKind.REJECTED, f"{count} request(s) were refused: {why}", figures={"count": count})

    def lines(self, most: int) -> list[str]:
        """The latest events, for a terminal."""
        return [f"{datetime.fromtimestamp(event.at):%H:%M:%S} {event.message}" for event in self.events.page(limit=most).events]


class RouteRecorder:
    """What a head remembers of one pipeline's routes."""

    def __init__(self, recorder: Recorder, pipeline: str = "") -> None:
        self.pipeline = pipeline
        self.hops: tuple[deque[float], ...] = ()
        """The latest of each hop on this route, the way back last."""
        self._recorder = recorder
        self._preemptions = self._evictions = 0
        self._clock = HopClock()
        self._rate: deque[tuple[float, int]] = deque()

    def step(self, timing: StepTiming) -> tuple[float, ...]:
        """Returns the seconds of each hop."""
        hops = self._clock.split(timing)
        self._recorder.timelines.step(timing, hops)
        if len(self.hops) != len(hops):
            self.hops = tuple(deque[float](maxlen=200) for _ in hops)
        for kept, seconds in zip(self.hops, hops, strict=True):
            kept.append(seconds)
        if timing.sampled:
            now = self._recorder.now()
            self._recorder.day.tokens(timing.sampled, self._recorder.wall + now)
            self._rate.append((now, timing.sampled))
            while now - self._rate[0][0] > RATE:
                self._rate.popleft()
        return hops

    @property
    def tokens_per_second(self) -> float:
        """Of the last seconds."""
        now = self._recorder.now()
        return sum(count for at, count in self._rate if now - at <= RATE) / min(
            RATE, max(now + self._recorder.wall - self._recorder.started, 1.0)
        )

    def route(self, epoch: int, nodes: Sequence[str]) -> None:
        """A route begins to run."""
        self._clock, self.hops = HopClock(), ()
        self._recorder.timelines.route(epoch, nodes)

    def resumed(self, reason: str, began: float, ended: float, parts: dict[str, float], refilled: int) -> EventKind | None:
        """Streams go on. Moments by the head's clock. Returns what happened to the node that was the cause, if one was."""
        caused = [
            event for event in self._recorder.events if event.kind in _CAUSES and began - _LEAD <= event.at - self._recorder.wall <= ended
        ]
        node, silence = (caused[0].node, caused[0].figures.get("silence", 0.0)) if caused else ("", 0.0)
        self._recorder.timelines.interrupted(Recovery(reason, began, ended, parts, refilled, node, silence, self.pipeline))
        figures = {**parts, "pause": ended - began, "tokens": float(refilled)}
        self._recorder.events.add(EventKind.RESUMED, f"streams go on after {ended - began:.2f} s: {reason}", node, figures)
        return caused[0].kind if caused else None

    def counted(self, preemptions: int, evictions: int) -> None:
        """Counts of the scheduler, as they are now: of sequences preempted, and of kept blocks given up."""
        self._recorder.often.add(EventKind.PREEMPTED, _more(self._preemptions, preemptions))
        self._recorder.often.add(EventKind.CACHE, _more(self._evictions, evictions))
        self._preemptions, self._evictions = preemptions, evictions


def _more(before: int, now: int) -> int:
    """What came to a count that may have begun anew, as with another pool of KV blocks."""
    return now - before if now >= before else now
