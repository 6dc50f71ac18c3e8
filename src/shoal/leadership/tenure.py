"""One cluster's lease as its keeper records it. Pure: time is an argument, by the keeper's own clock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Tenure:
    """term: of the last grant; 0: there was none. owner: who has it, as it names itself; '': nobody. until: when it is over."""

    term: int = 0
    owner: str = ""
    address: str = ""
    until: float = 0.0

    def held(self, now: float) -> bool:
        return now < self.until

    def acquire(self, owner: str, address: str, floor: int, duration: float, now: float) -> bool:
        """Grants it for `duration` seconds under a term greater than `floor`, unless another has it. Returns whether it did."""
        if self.held(now) and owner != self.owner:
            return False
        self.term = max(self.term, floor) + 1
        self.owner, self.address, self.until = owner, address, now + duration
        return True

    def renew(self, owner: str, term: int, duration: float, now: float) -> bool:
        """Extends a grant that is not over; returns whether it did."""
        if not self._has(owner, term) or not self.held(now):
            return False
        self.until = max(self.until, now + duration)
        return True

    def release(self, owner: str, term: int) -> bool:
        """Ends a grant; returns whether it did."""
        if not self._has(owner, term):
            return False
        self.owner, self.address, self.until = "", "", 0.0
        return True

    def _has(self, owner: str, term: int) -> bool:
        return owner == self.owner and term == self.term
