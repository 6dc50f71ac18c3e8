"""How long a node that keeps getting lost is left out of routes."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.retry import doubling

_FIRST, _MOST = 2.0, 120.0  # seconds
_FORGIVEN = 300.0  # seconds without a loss after which a node counts as sound again


@dataclass
class HoldOff:
    """By the node's name. The first loss has no effect; each further one doubles the time."""

    _losses: dict[str, tuple[int, float]] = field(default_factory=dict[str, tuple[int, float]])

    def lost(self, name: str, now: float) -> None:
        count, last = self._losses.get(name, (0, now))
        self._losses[name] = (1 if now - last > _FORGIVEN else count + 1, now)

    def losses(self, name: str) -> int:
        return self._losses.get(name, (0, 0.0))[0]

    def until(self, name: str) -> float:
        """When the node may be used again; in the past for most nodes."""
        count, last = self._losses.get(name, (0, 0.0))
        return last + doubling(_FIRST, count - 2, _MOST) if count > 1 else float("-inf")
