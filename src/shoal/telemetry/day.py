"""The last day in figures, minute by minute. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import ceil

from shoal.observed.history import SAMPLES, STEP, History

_MOST = 4096
"""First tokens of a minute that are kept for its percentiles."""


@dataclass
class _Minute:
    at: float
    began: float
    tokens: int = 0
    firsts: list[float] = field(default_factory=list[float])
    queue: int = 0
    blocks: float = 0.0
    memory: int = 0
    nodes: int | None = None


class Day:
    """now: seconds since 1970."""

    def __init__(self, now: float) -> None:
        self._minutes: deque[_Minute] = deque(maxlen=SAMPLES)
        self._open(now)

    def _open(self, now: float) -> _Minute:
        if not self._minutes or now // STEP * STEP != self._minutes[-1].at:
            at = now // STEP * STEP
            self._minutes.append(_Minute(at, at if self._minutes else now))
        return self._minutes[-1]

    def tokens(self, count: int, now: float) -> None:
        self._open(now).tokens += count

    def first_token(self, seconds: float, now: float) -> None:
        if len(firsts := self._open(now).firsts) < _MOST:
            firsts.append(seconds)

    def sample(self, now: float, *, queue: int, blocks: float, memory: int, nodes: int) -> None:
        """See History."""
        minute = self._open(now)
        minute.queue, minute.blocks = max(minute.queue, queue), max(minute.blocks, blocks)
        minute.memory = max(minute.memory, memory)
        minute.nodes = nodes if minute.nodes is None else min(minute.nodes, nodes)

    def history(self, now: float) -> History:
        self._open(now)
        minutes = [*self._minutes]
        firsts = [sorted(minute.firsts) for minute in minutes]
        return History(
            at=[minute.at for minute in minutes],
            tokens_per_second=[minute.tokens / max(min(now, minute.at + STEP) - minute.began, 1.0) for minute in minutes],
            first_p50=[percentile(values, 0.5) for values in firsts],
            first_p99=[percentile(values, 0.99) for values in firsts],
            queue=[minute.queue for minute in minutes],
            blocks=[round(minute.blocks, 4) for minute in minutes],
            memory=[minute.memory for minute in minutes],
            nodes=[minute.nodes or 0 for minute in minutes],
        )


def percentile(ascending: list[float], share: float) -> float | None:
    """The smallest value that at least this share of them do not exceed; None without values. share: in (0, 1]."""
    if not ascending:
        return None
    return ascending[max(ceil(share * len(ascending)) - 1, 0)]
