"""Times calls on a machine that others use, too: in turns, so that a busy moment slows none of them alone, without the time in which another
program had the processor, and of each the fastest counts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from time import perf_counter
from typing import TypeVar

from shoal.executor.other_load import ThreadClock

Key = TypeVar("Key", bound=Hashable)
_FEWEST, _IN_A_ROW = 6, 2


def fast_seconds(calls: Mapping[Key, Callable[[], object]], seconds: float) -> dict[Key, float]:
    """What each call takes. seconds: for all together; each is called several times even if that takes longer."""
    times: dict[Key, list[float]] = {key: [] for key in calls}
    clock, end = ThreadClock(), perf_counter() + seconds
    try:
        while perf_counter() < end or any(len(found) < _FEWEST for found in times.values()):
            for key, call in calls.items():
                call()  # what it reads is in the caches then, if it fits
                times[key] += [clock.seconds(call) for _ in range(_IN_A_ROW)]
    finally:
        clock.close()
    return {key: min(found) for key, found in times.items()}
