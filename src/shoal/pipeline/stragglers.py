"""Whether stages keep the pace that their nodes measured."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from statistics import median

from shoal.pipeline.timing import StepTiming

_ROWS = 8  # up to this many rows, a step is bound by reading the weights, which is what nodes measure
_LEAST = 20  # steps needed for a judgement
_AGREE = 3  # judgements in a row; the mildest counts


class StragglerDetector:
    """The straggler detector of one route."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, tuple[float, ...]]] = deque(maxlen=200)
        """Rows, and seconds of each stage."""
        self._judged: deque[list[float]] = deque(maxlen=_AGREE)

    def add(self, timing: StepTiming) -> None:
        if timing.sampled and timing.rows <= _ROWS:
            self._steps.append((timing.rows, tuple(trace.compute for trace in timing.traces)))

    def judge(self, stages: int, promised: Callable[[int], Sequence[float]]) -> list[float] | None:
        """How many times slower than promised each stage is, relative to the best one; None until that is certain.

        promised: seconds that each stage was expected to take for a step with so many rows.
        """
        steps = [(rows, seconds) for rows, seconds in self._steps if len(seconds) == stages]
        if len(steps) < _LEAST or stages < 2:
            return None
        self._steps.clear()
        due = {rows: promised(rows) for rows, _ in steps}
        ratios = [median(seconds[i] / due[rows][i] for rows, seconds in steps) for i in range(stages)]
        self._judged.append([ratio / min(ratios) for ratio in ratios])
        if len(self._judged) < _AGREE:
            return None
        return [min(judged[i] for judged in self._judged) for i in range(stages)]
