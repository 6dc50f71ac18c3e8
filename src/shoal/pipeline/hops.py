"""How long each hop of a step took, though the machines' clocks do not agree. Pure.

A step leaves the head, passes through the stages and comes back, so the seconds of all hops together are exact: they are what is left of
its flight. A single hop is the difference of two clocks, which is off by an unknown constant and drifts slowly. The smallest difference
of the last seconds is what that hop takes when nothing holds it up; whatever a step took longer was spent in that hop. The hops' best
times together are exact again, and are dealt out evenly.
"""

from __future__ import annotations

from shoal.pipeline.timing import StepTiming

WINDOW = 5.0
"""Seconds after which a smallest difference is forgotten, at most twice that: crystals drift by up to 0.05 ms per second."""


class HopClock:
    """Of one route."""

    def __init__(self) -> None:
        self._began = 0.0
        self._least: list[float] = []
        self._before: list[float] = []
        """Of the window before."""

    def split(self, timing: StepTiming) -> tuple[float, ...]:
        """Seconds of the way to each stage, and of the way back to the head. Together they are `timing.hops`."""
        count = len(timing.traces) + 1
        if not all(trace.arrived for trace in timing.traces):
            return (timing.hops / count,) * count
        gaps = _gaps(timing)
        if len(gaps) != len(self._least):
            self._began, self._least, self._before = timing.sent, gaps, gaps
        elif timing.sent - self._began > WINDOW:
            self._began, self._before, self._least = timing.sent, self._least, gaps
        else:
            self._least = [min(a, b) for a, b in zip(self._least, gaps, strict=True)]
        late = [gap - min(a, b) for gap, a, b in zip(gaps, self._least, self._before, strict=True)]
        late = [max(seconds, 0.0) for seconds in late]
        rest = max(timing.hops + timing.send - sum(late), 0.0) / count
        took = [seconds + rest for seconds in late]
        took[0] = max(took[0] - timing.send, 0.0)
        times = timing.hops / whole if (whole := sum(took)) else 0.0
        return tuple(seconds * times for seconds in took)


def _gaps(timing: StepTiming) -> list[float]:
    """Of each hop, the arrival by the receiver's clock less the departure by the sender's. A step may arrive before its sending returns."""
    left, out = timing.sent - timing.send, list[float]()
    for trace in timing.traces:
        out.append(trace.arrived - left)
        left = trace.arrived + trace.wait + trace.prepare + trace.compute + trace.sample + trace.encode
    return [*out, timing.sent + timing.flight - left]
