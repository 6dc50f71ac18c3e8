"""Which worker is asked for which experts, and when it is asked elsewhere, too. Pure: times are arguments."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from shoal.node.expert_tables import together

Table = Mapping[int, frozenset[int]]
"""By layer: experts."""

_REMEMBERED = 128
"""Answers of a worker from which its usual time is taken."""
_FEWEST = 16
"""Answers before it is known, and before it is looked at again."""
_WHILE = 5.0
"""Seconds in which a worker is not asked for what it refused."""
_MARGIN = 2.0
"""A worker is late after so many times the time within which 95 % of its answers came."""


@dataclass
class ExpertHolder:
    held: Table
    outstanding: int = 0
    """Rows that it was asked and has not answered."""
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    """Its last answers took, for a unit of work each."""
    late: float | None = None
    """Seconds for a unit of work after which an answer is late, from time to time from these; None: not known yet."""
    _unsorted: int = 0
    """Answers since then."""
    refusals: deque[tuple[float, int, frozenset[int]]] = field(default_factory=deque[tuple[float, int, frozenset[int]]])
    """Until when it is not asked for what it refused: a layer's experts."""
    abandoned: dict[int, tuple[float, float]] = field(default_factory=dict[int, tuple[float, float]])
    """Numbers of frames that it has not answered and that nobody waits for any more; when they were sent, and their work. While there are any,
    others are asked first."""
    away: bool = False
    """Its connection is lost: it may come back."""
    fenced: str = ""
    """Why it is never asked again: it answered what cannot be."""

    @property
    def usable(self) -> bool:
        return not self.away and not self.fenced

    @property
    def state(self) -> str:
        """For people."""
        return f"not asked any more, {self.fenced}" if self.fenced else "cannot be reached" if self.away else "lacks it"

    def refused(self, layer: int, experts: Sequence[int], now: float) -> None:
        """It does not run them now: perhaps it lacks one, or cannot read it. They are asked of others for a while."""
        self.held = {**self.held, layer: self.held.get(layer, frozenset()).difference(experts)}
        self.refusals.append((now + _WHILE, layer, frozenset(experts)))

    def forgive(self, now: float) -> None:
        """What was refused long ago may be asked again."""
        while self.refusals and self.refusals[0][0] <= now:
            _, layer, experts = self.refusals.popleft()
            self.held = {**self.held, layer: self.held.get(layer, frozenset()) | experts}

    def answered(self, seconds: float, work: float = 1.0) -> None:
        """After so long."""
        self.seconds.append(seconds / work)
        self._unsorted += 1
        if self._unsorted >= _FEWEST:
            self.late, self._unsorted = _MARGIN * sorted(self.seconds)[int(0.95 * len(self.seconds))], 0


class Holders:
    """tables: what each worker holds."""

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self._workers = {name: ExpertHolder(held) for name, held in tables.items()}

    def __getitem__(self, worker: str) -> ExpertHolder:
        return self._workers[worker]

    def __iter__(self) -> Iterator[str]:
        return iter(self._workers)

    @property
    def experts(self) -> dict[int, frozenset[int]]:
        """By layer: those that anybody holds, reachable now or not."""
        return together(holder.held for holder in self._workers.values())

    def may_come_back(self, layer: int, experts: Sequence[int], without: Iterable[str] = ()) -> bool:
        """Whether one that has any of them is away now, or does not answer. Otherwise waiting helps nobody."""
        barred = set(without)
        return any(
            (holder.away or holder.abandoned) and not holder.fenced and not holder.held.get(layer, frozenset[int]()).isdisjoint(experts)
            for name, holder in self._workers.items()
            if name not in barred
        )

    def forgive(self, now: float) -> None:
        for holder in self._workers.values():
            if holder.refusals:
                holder.forgive(now)

    def choose(self, layer: int, experts: Sequence[int], without: Iterable[str] = (), answering: bool = False) -> dict[str, list[int]]:
        """Whom to ask for which of the experts; some are left out if nobody has them now. As few workers as can be, since each costs a round
        trip; among those with as many of the experts, the one that has the least to do. One that does not answer is asked only for what nobody
        else has; if `answering`, for nothing. without: not to be asked."""
        barred = set(without)
        if len(self._workers) == 1 and not barred:  # as in most clusters, and once a layer
            ((name, holder),) = self._workers.items()
            if (
                experts
                and holder.usable
                and not (answering and holder.abandoned)
                and holder.held.get(layer, frozenset[int]()).issuperset(experts)
            ):
                return {name: list(experts)}
        left, out = list(experts), dict[str, list[int]]()
        open_to = {name: holder for name, holder in self._workers.items() if holder.usable and name not in barred}
        fresh = {name: holder for name, holder in open_to.items() if not holder.abandoned}
        for some in (fresh,) if answering else (fresh, open_to):
            left = self._greedy(layer, left, some, out)
        return out

    def _greedy(self, layer: int, left: list[int], open_to: dict[str, ExpertHolder], out: dict[str, list[int]]) -> list[int]:
        """Puts into `out` who is asked for what; the experts that none of these workers has."""
        while left:
            has = {name: [expert for expert in left if expert in holder.held.get(layer, ())] for name, holder in open_to.items()}
            best = max(has, key=lambda name: (len(has[name]), -open_to[name].outstanding, name), default=None)
            if best is None or not has[best]:
                break
            out[best] = has[best]
            del open_to[best]
            left = [expert for expert in left if expert not in out[best]]
        return left
