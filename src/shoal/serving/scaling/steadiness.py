"""When a demand has lasted long enough to be followed.

More replicas are added when even the least demand of the last `--scale-up-after` seconds asks for them, and taken away when the greatest of
the last `--scale-down-after` does not ask for them: the stabilisation windows of Kubernetes' HorizontalPodAutoscaler. Between both lies the
tolerance, within which a demand that is noisy changes nothing. After a change nothing is added, or taken away, during the cooldown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil, inf

from shoal.config import ScalingSettings
from shoal.observed.fleet_plan import ScalingHold
from shoal.serving.scaling.load import ModelLoad

_ALMOST = 1e-9
"""What arithmetic may add to a whole number."""


@dataclass(frozen=True)
class Aim:
    """wanted: by the demand of now, within the bounds. replicas: of those what has lasted, and may be done now."""

    wanted: int
    replicas: int
    holds: tuple[ScalingHold, ...] = ()


def followed(count: int, demand: float, tolerance: float) -> int:
    """Replicas for a demand where there are `count`: the same while it is met within the tolerance. Grows with the demand."""
    if demand > count * (1 + tolerance):
        return ceil(demand - _ALMOST)
    return min(count, ceil(demand / (1 - tolerance) - _ALMOST))


@dataclass
class Steadiness:
    """Of one model's demand."""

    _demands: deque[tuple[float, float]] = field(default_factory=deque[tuple[float, float]])
    _added: float = -inf
    _changed: float = -inf

    def saw(self, now: float, demand: float, settings: ScalingSettings) -> None:
        """now: not before the one before."""
        self._demands.append((now, demand))
        begin = now - max(settings.scale_up_after, settings.scale_down_after)
        while len(self._demands) > 1 and self._demands[1][0] <= begin:  # the one before it tells how it was when that began
            self._demands.popleft()

    def changed(self, now: float, *, added: bool) -> None:
        self._changed = now
        if added:
            self._added = now

    def least(self, now: float, seconds: float) -> float:
        """Demand of the last seconds; 0 if they have not been seen."""
        return min(self._since(now - seconds), default=0.0) if self._seen(now - seconds) else 0.0

    def greatest(self, now: float, seconds: float) -> float:
        """Demand of the last seconds; endless if they have not been seen."""
        return max(self._since(now - seconds), default=inf) if self._seen(now - seconds) else inf

    def may_add(self, now: float, settings: ScalingSettings) -> float:
        """Seconds until then."""
        return max(self._added + settings.scale_up_cooldown - now, 0.0)

    def may_remove(self, now: float, settings: ScalingSettings) -> float:
        """Seconds until then."""
        return max(self._changed + settings.scale_down_cooldown - now, 0.0)

    def aim(self, now: float, load: ModelLoad, settings: ScalingSettings) -> Aim:
        """After `saw`."""
        count, demand = load.kept, self._demands[-1][1]
        least, most = settings.replicas_min, settings.replicas_max
        floor = least or (0 if load.idle >= settings.scale_idle or not count else 1)
        asked = followed(count, demand, settings.scale_tolerance)
        wanted = min(max(asked, floor), most)
        holds = _bounds(asked, wanted, settings)
        if count < least or count > most:
            return Aim(wanted, min(max(count, least), most), holds)
        if wanted > count:
            lasting = demand if not count else self.least(now, settings.scale_up_after)  # nobody serves those who wait
            replicas = min(max(followed(count, lasting, settings.scale_tolerance), count), wanted)
            return self._held(Aim(wanted, replicas, holds), count, self.may_add(now, settings), "added")
        if wanted < count:
            lasting = self.greatest(now, settings.scale_down_after)
            replicas = count if lasting == inf else min(max(followed(count, lasting, settings.scale_tolerance), wanted), count)
            return self._held(Aim(wanted, replicas, holds), count, self.may_remove(now, settings), "taken away")
        return Aim(wanted, count, holds)

    def _held(self, aim: Aim, count: int, cooldown: float, done: str) -> Aim:
        if cooldown > 0:
            hold = ScalingHold("cooldown", f"nothing is {done} for {cooldown:.0f} s more: the cooldown after the last change", cooldown)
            return Aim(aim.wanted, count, (*aim.holds, hold))
        if aim.replicas == count:
            return Aim(aim.wanted, count, (*aim.holds, ScalingHold("settling", f"nothing is {done} before the load has lasted")))
        return aim

    def _since(self, begin: float) -> Iterable[float]:
        return [demand for at, demand in self._demands if at >= begin] or [self._demands[-1][1]]

    def _seen(self, begin: float) -> bool:
        return bool(self._demands) and self._demands[0][0] <= begin


def _bounds(asked: int, wanted: int, settings: ScalingSettings) -> tuple[ScalingHold, ...]:
    if asked > wanted:
        return (ScalingHold("maximum", f"the load asks for {asked}, --replicas-max is {settings.replicas_max}"),)
    if asked < wanted and settings.replicas_min:
        return (ScalingHold("minimum", f"the load asks for {asked}, --replicas-min is {settings.replicas_min}"),)
    return ()
