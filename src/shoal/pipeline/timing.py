"""What a step cost, and where, as the head sees it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import NamedTuple

from shoal.request import RequestId
from shoal.scheduler.plan import StageTrace


class StepPart(NamedTuple):
    """What a step did for one request. tokens: that it sampled."""

    request: RequestId
    rows: int
    tokens: int


@dataclass(frozen=True)
class StepTiming:
    """Seconds. `flight` runs from sending the plan to the arrival of its result."""

    rows: int
    sampled: int
    schedule: float
    encode: float
    send: float
    flight: float
    apply: float
    traces: tuple[StageTrace, ...]
    number: int = 0
    epoch: int = 0
    sent: float = 0.0
    """When the flight began, on the head's clock."""
    parts: tuple[StepPart, ...] = ()

    @property
    def in_stages(self) -> float:
        """Seconds inside the stages, including waiting for earlier steps."""
        return sum(t.wait + t.prepare + t.compute + t.sample + t.encode for t in self.traces)

    @property
    def hops(self) -> float:
        """Seconds between the processes: sockets, wake-ups, the operating system."""
        return max(self.flight - self.in_stages, 0.0)

    @property
    def overhead(self) -> float:
        """Seconds that are neither computing nor waiting for another step, per hop (stages and the way back)."""
        compute = sum(t.wait + t.compute + t.sample for t in self.traces)
        return (self.schedule + self.encode + self.send + self.flight + self.apply - compute) / (len(self.traces) + 1)


class Timings:
    """The timings of the latest steps."""

    def __init__(self, keep: int = 1024) -> None:
        self._steps: deque[StepTiming] = deque(maxlen=keep)

    def add(self, timing: StepTiming) -> None:
        self._steps.append(timing)

    def latest(self, most: int) -> list[StepTiming]:
        """Those that sampled, of the latest steps."""
        return [step for step in islice(reversed(self._steps), most) if step.sampled and step.traces]

    def clear(self) -> None:
        self._steps.clear()

    def summary(self, rows: int | None = None) -> dict[str, object]:
        """Medians in seconds over the steps that sampled, only those of `rows` rows if given; empty without steps."""
        steps = [s for s in self._steps if s.sampled and s.traces and (rows is None or s.rows == rows)]
        if not steps:
            return {}
        stages = len(steps[-1].traces)
        steps = [s for s in steps if len(s.traces) == stages]
        return {
            "steps": len(steps),
            "rows": median(s.rows for s in steps),
            "schedule": median(s.schedule for s in steps),
            "encode": median(s.encode for s in steps),
            "send": median(s.send for s in steps),
            "flight": median(s.flight for s in steps),
            "apply": median(s.apply for s in steps),
            "hops": median(s.hops for s in steps),
            "overhead_per_hop": median(s.overhead for s in steps),
            "stages": [
                {part: median(getattr(s.traces[i], part) for s in steps) for part in ("wait", "prepare", "compute", "sample", "encode")}
                for i in range(stages)
            ],
        }
