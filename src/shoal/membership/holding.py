"""What a node has of one model, and why it may be left out of that model's routes for a while."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.retry import doubling

_LEFT_OUT, _MOST_LEFT_OUT = 15.0, 600.0  # seconds for which a failed node is left out, the first time and at most


@dataclass
class Holding:
    loaded: tuple[range, ...] = ()
    """Layers whose weights it holds."""
    ordered: bool = False
    """Whether it was ever told to load any of it, and not to drop it since."""
    staged: bool = False
    """Whether it entered an epoch and was not told to rest since."""
    filled: range = range(0)
    """Layers whose keys and values it holds; see membership.route_machine."""
    experts: bool = False
    """Whether it has loaded experts for stages on other nodes, and was not told to make room since."""
    weight_bytes: int = 0
    runtime: str = ""
    failed: str = ""
    """Why it is left out of routes, until `retry`."""
    failures: int = 0
    retry: float = 0.0

    def usable(self, now: float) -> bool:
        """Whether a route may include the node."""
        return not self.failed or self.retry <= now

    def blame(self, reason: str, now: float) -> None:
        """Leaves the node out for a time that doubles with each failure."""
        self.failed = reason
        self.failures += 1
        self.retry = now + doubling(_LEFT_OUT, self.failures - 1, _MOST_LEFT_OUT)
