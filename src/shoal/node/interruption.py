"""The parts of an interruption of service."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Interruption:
    """Moments in monotonic seconds; 0 for what has not happened yet."""

    reason: str
    began: float
    """The loss was noticed, or the route was paused."""
    moved: bool = False
    """Nothing was lost: layers are moved."""
    placed: float = 0.0
    """The next route was chosen."""
    loaded: float = 0.0
    linked: float = 0.0
    filled: float = 0.0
    resumed: float = 0.0
    """The first token came."""
    tokens: int = 0
    """How many were refilled."""

    def parts(self) -> dict[str, float]:
        """Seconds of each part, in order; parts that have not happened are left out."""
        moments = [self.began, self.placed, self.loaded, self.linked, self.filled, self.resumed]
        names = ("fence", "load", "link", "refill", "resume")
        return {name: b - a for name, a, b in zip(names, moments, moments[1:], strict=False) if a and b}


class Interruptions:
    """Tracks the current interruption, if there is one."""

    def __init__(self, now: Callable[[], float], ended: Callable[[Interruption], None]) -> None:
        """ended: called with each interruption when the first token has come."""
        self._now, self._tell = now, ended
        self._current: Interruption | None = None

    def begin(self, reason: str, moved: bool = False) -> None:
        if self._current is None:
            now = self._now()
            self._current = Interruption(reason, now, moved, placed=now)

    def placed(self) -> None:
        if self._current is not None:
            self._current.placed = self._now()

    def loaded(self) -> None:
        if self._current is not None:
            self._current.loaded = self._now()

    def linked(self) -> None:
        if self._current is not None:
            self._current.linked = self._now()

    def filled(self, tokens: int, somebody: bool) -> None:
        """tokens: how many were refilled. somebody: whether any requests were interrupted."""
        if self._current is not None:
            self._current.filled, self._current.tokens = self._now(), tokens
            if not somebody:
                self._current = None

    def token_came(self) -> None:
        ended = self._current
        if ended is not None and ended.filled:
            self._current = None
            ended.resumed = self._now()
            self._tell(ended)
