"""How much of the processors other programs take while something is measured."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

_STAT, _QUEUED = Path("/proc/stat"), Path("/proc/thread-self/schedstat")
_WAITING = (3, 4)
"""Of the columns: idle, and waiting for a disk."""
_COLUMNS = 8
"""Beyond them guests, which count as programs before."""


class OtherLoad:
    """Begins to count when it is made."""

    def __init__(self) -> None:
        self._began = _now()

    def share(self) -> float | None:
        """Of all processors, 0 to 1, since the beginning; None where the system does not tell."""
        end = _now()
        if self._began is None or end is None:
            return None
        every, busy, own = (b - a for a, b in zip(self._began, end, strict=True))
        return min(max(busy - own, 0.0) / every, 1.0) if every else None


class ThreadClock:
    """Time as a thread has it that no other program keeps waiting: what passes while it is ready to run and another has its processor does
    not count. For the thread that makes it. Where the system does not tell, all time counts."""

    def __init__(self) -> None:
        try:
            self._file = os.open(_QUEUED, os.O_RDONLY)
        except OSError:
            self._file = -1

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def seconds(self, run: Callable[[], object]) -> float:
        """What a call takes."""
        began, queued = perf_counter(), self._queued()
        run()
        queued = self._queued() - queued  # within the other two times, so that it is never more than what passed
        return perf_counter() - began - queued

    def _queued(self) -> float:
        return int(os.pread(self._file, 100, 0).split()[1]) / 1e9 if self._file >= 0 else 0.0


def _now() -> tuple[float, float, float] | None:
    """Seconds since the start of the machine: of all processors, those that they worked, and those that this process had of them."""
    try:
        columns = [int(text) for text in _STAT.read_text().split("\n", 1)[0].split()[1 : 1 + _COLUMNS]]
    except (OSError, ValueError):
        return None
    ticks, mine = os.sysconf("SC_CLK_TCK"), os.times()
    every = sum(columns)
    return every / ticks, (every - sum(columns[i] for i in _WAITING)) / ticks, mine.user + mine.system
