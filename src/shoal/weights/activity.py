"""What the disk and the processor do while weights are streamed: sums since the beginning, and the last spans with their times."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from threading import Lock
from time import perf_counter

from shoal.placement.timeline import DISK, PROCESSOR, WAITING, Span
from shoal.weights.direct_file import Source

KEPT = 8192
"""Spans; a step that reads everything of a model with 48 layers of 128 experts has fewer."""


@dataclass(frozen=True)
class Sums:
    """Since the beginning."""

    computing: float = 0.0
    """Seconds in which the processor ran blocks."""
    waiting: float = 0.0
    """Seconds in which it waited for weights."""
    reading: float = 0.0
    """Seconds in which at least one read was under way."""
    nbytes: int = 0
    """That were read."""
    reads: int = 0

    def __sub__(self, before: Sums) -> Sums:
        return Sums(*(mine - its for mine, its in zip(astuple(self), astuple(before), strict=True)))


class Activity:
    """One thread turns the processor from one thing to the next; any number of threads read."""

    def __init__(self, clock: Callable[[], float] = perf_counter, kept: int = KEPT) -> None:
        self._clock = clock
        self._spans: deque[Span] = deque(maxlen=kept)
        self._changing = Lock()
        self._computing, self._waiting, self._reading, self._nbytes, self._reads = 0.0, 0.0, 0.0, 0, 0
        self._now: tuple[str, int, float] | None = None
        """What the processor does, of which layer, and since when."""
        self._under_way, self._reading_since = 0, 0.0

    @property
    def computes(self) -> bool:
        return self._now is not None and self._now[0] != WAITING

    def turn(self, what: str = "", layer: int = -1) -> None:
        """From now on the processor does this; "": nothing for a step."""
        now = self._clock()
        if self._now is not None:
            did, of, began = self._now
            with self._changing:
                self._spans.append(Span(PROCESSOR, did, of, began, now))
                if did == WAITING:
                    self._waiting += now - began
                else:
                    self._computing += now - began
        self._now = (what, layer, now) if what else None

    def read_begins(self) -> float:
        """The time, for `read_ends`."""
        with self._changing:
            now = self._clock()
            if not self._under_way:
                self._reading_since = now
            self._under_way += 1
            return now

    def read_ends(self, what: str, layer: int, began: float, nbytes: int) -> None:
        """Well or not."""
        with self._changing:
            now = self._clock()
            self._under_way -= 1
            if not self._under_way:
                self._reading += now - self._reading_since
            self._nbytes += nbytes
            self._reads += 1
            self._spans.append(Span(DISK, what, layer, began, now))

    @property
    def sums(self) -> Sums:
        """Any thread may ask."""
        with self._changing:
            reading = self._reading + (self._clock() - self._reading_since if self._under_way else 0.0)
            return Sums(self._computing, self._waiting, reading, self._nbytes, self._reads)

    @property
    def spans(self) -> list[Span]:
        """The last ones, in the order in which they ended. Any thread may ask."""
        with self._changing:
            return list(self._spans)


class WatchedSource:
    """A source whose reads are recorded, as of some kind and layer."""

    def __init__(self, source: Source, activity: Activity, what: str, layer: int) -> None:
        self._source, self._activity, self._what, self._layer = source, activity, what, layer

    @property
    def path(self) -> Path:
        return self._source.path

    def read_into(self, offset: int, into: memoryview) -> int:
        began, count = self._activity.read_begins(), 0
        try:
            count = self._source.read_into(offset, into)
        finally:
            self._activity.read_ends(self._what, self._layer, began, count)
        return count
