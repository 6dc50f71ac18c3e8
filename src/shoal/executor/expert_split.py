"""Which of a layer's experts go to workers and which run here, where both have them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

Experts = Mapping[int, frozenset[int]]
"""By layer."""

ROWS_LIKE_READING = 16
"""Rows whose products take as long as to read an expert once."""
_NEWEST = 1 / 16
"""Weight of the newest measurement in a mean."""
_FADING = 1 / 256
"""Of a pace, whenever it was not measured because it was too slow."""


def work(rows: int) -> float:
    """Of an expert, in reads of one."""
    return 1 + rows / ROWS_LIKE_READING


@dataclass
class Pace:
    """Seconds for a unit of `work`, as measured; 0: not yet."""

    seconds: float = 0.0

    def took(self, seconds: float, units: float) -> None:
        if units > 0 and seconds > 0:
            self.seconds += ((seconds / units) - self.seconds) * (_NEWEST if self.seconds else 1.0)

    def fade(self) -> None:
        """What was measured counts less with time."""
        self.seconds *= 1 - _FADING


@dataclass
class Split:
    """Divides a layer's experts so that both sides end at once.

    workers: that share what is sent. asking: seconds that a question and its answer take, beside the products. per_row: seconds more for each row.
    """

    workers: int
    asking: float
    per_row: float = 0.0
    here: Pace = field(default_factory=Pace)
    there: Pace = field(default_factory=Pace)

    def sent(self, rows: Mapping[int, int], only_there: frozenset[int], there_too: frozenset[int]) -> list[int]:
        """Those of the experts that workers run, rising. rows: of each expert that is needed; others than those in the two sets
        are here alone. As long as a pace is not known, both sides count as equally fast, and asking as nothing."""
        here, there, asking, per_row = self.here.seconds, self.there.seconds, self.asking, self.per_row
        if not here or not there:
            here = there = 1.0
            asking = per_row = 0.0
        there /= self.workers
        out, free = list[int](), list[tuple[int, int]]()
        local = remote = 0.0
        for expert, count in rows.items():
            if expert in only_there:
                out.append(expert)
                remote += there * work(count) + per_row * count
            elif expert in there_too:
                free.append((-count, expert))
            else:
                local += here * work(count)
        remote += asking
        for count, expert in sorted(free):  # those with most rows first
            mine, theirs = local + here * work(-count), remote + there * work(-count) - per_row * count
            if theirs < mine:
                remote = theirs
                out.append(expert)
            else:
                local = mine
        if free and not out:
            self.there.fade()  # or workers that were slow once would never be asked again
        elif free and len(out) == len(rows):
            self.here.fade()
        return sorted(out)


class RemoteLayer(NamedTuple):
    """Experts of a layer that workers hold. degrade: see RemoteExperts."""

    only: frozenset[int]
    """Those that are not here."""
    also: frozenset[int]
    """Those that are here, too."""
    split: Split
    degrade: bool


@dataclass(frozen=True)
class RemoteExperts:
    """Those of a stage's layers that workers hold. only, also, split: see RemoteLayer. degrade: whether a step may go on without experts that
    nobody can run; the others of their rows get their weight."""

    only: Experts
    also: Experts
    split: Split
    degrade: bool = False

    def of(self, layer: int) -> RemoteLayer | None:
        only, also = self.only.get(layer, frozenset[int]()), self.also.get(layer, frozenset[int]())
        return RemoteLayer(only, also, self.split, self.degrade) if only or also else None
