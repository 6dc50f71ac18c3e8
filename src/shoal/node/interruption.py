"""What an interruption of service was made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Interruption:
    """Moments in monotonic seconds; 0 where something has not come yet."""

    reason: str
    began: float
    """The loss was noticed, or the route was paused."""
    placed: float = 0.0
    """The next route was chosen."""
    loaded: float = 0.0
    linked: float = 0.0
    filled: float = 0.0
    resumed: float = 0.0
    """The first token came."""
    tokens: int = 0
    """Refilled."""

    def parts(self) -> dict[str, float]:
        """Seconds of each part, in their order; those that have not come are left out."""
        moments = [self.began, self.placed, self.loaded, self.linked, self.filled, self.resumed]
        names = ("fence", "load", "link", "refill", "resume")
        return {name: b - a for name, a, b in zip(names, moments, moments[1:], strict=False) if a and b}
