"""The heads that a node knows of its cluster, which of them it asks next, and whom it believes. Pure."""

from __future__ import annotations

from collections.abc import Sequence

_MOST = 8  # heads that are remembered beside the one that leads
_ROUND = 0.1  # seconds between two rounds through heads of which one is to lead in moments


class KnownHeads:
    def __init__(self, first: str) -> None:
        self.address = first
        """Of the head that is asked now."""
        self.term = 0
        """The highest under which a head has led that this node joined."""
        self._others: list[str] = []
        self._asked = 0

    @property
    def several(self) -> bool:
        return bool(self._others)

    def stale(self, term: int) -> bool:
        """Whether a head of that term leads no more, whatever it believes: another one has led since. One without a lease has term 0, and
        is not one of several."""
        return 0 < term < self.term

    def joined(self, term: int) -> None:
        self.term = term
        self._asked = 0

    def told(self, others: Sequence[str]) -> None:
        """The heads beside the one that leads. Those that were there before come after them: one that the leader has just lost may lead next."""
        known = [address for address in dict.fromkeys([*others, *self._others]) if address != self.address]
        self._others = known[:_MOST]

    def led_by(self, leader: str) -> None:
        """A head that does not lead says who does."""
        if leader and leader != self.address:
            self._others = [leader, *(address for address in self._others if address != leader)]

    def next(self) -> float | None:
        """Goes on to the next head: the one that was asked last comes last. Returns the seconds to wait before it is asked; None: there is
        no other one."""
        if not self._others:
            return None
        self._others.append(self.address)
        self.address = self._others.pop(0)
        self._asked += 1
        return 0.0 if self._asked % (len(self._others) + 1) else _ROUND
