"""How many replicas a load asks for: each signal beside its target.

As Kubernetes' HorizontalPodAutoscaler: replicas that serve, times figure over target, and the largest answer counts. Signals that depend on
how many serve (a queue grows as long as there are too few) ask for at most half as many more, until those that are being loaded
serve. What arrives, or will, does not depend on it, and has no such limit.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal.config import ScalingSettings
from shoal.observed.fleet_plan import LoadSignal
from shoal.serving.scaling.expected_traffic import ExpectedTraffic
from shoal.serving.scaling.load import ModelLoad

_GROWTH = 1.5
_CONTENT = 0.5
"""Share of the first token's target from which on nothing is taken away."""
_WAKING = 1.0
"""Expected requests, until a replica could be loaded, from which on one is worth it."""


@dataclass(frozen=True)
class ReplicaDemand:
    replicas: float
    """A fraction: 1.2 replicas' work."""
    signals: tuple[LoadSignal, ...]

    @property
    def cause(self) -> LoadSignal | None:
        """The signal that asks for most. None: there is no load."""
        return max((signal for signal in self.signals if signal.replicas > 0), key=lambda signal: signal.replicas, default=None)


def demanded(now: float, load: ModelLoad, settings: ScalingSettings, expected: ExpectedTraffic | None) -> ReplicaDemand:
    """expected: None: there is no forecast. One that was no better than a naive one is not used."""
    felt = [signal for signal in (_queue(load, settings), _first_token(load, settings), *_taken(load, settings)) if signal is not None]
    told = [signal for signal in (_arrivals(load, settings), _forecast(now, load, settings, expected)) if signal is not None]
    most = max(_GROWTH * load.serving, 1)
    replicas = max([min(signal.replicas, most) for signal in felt] + [signal.replicas for signal in told], default=0.0)
    return ReplicaDemand(max(replicas, 1.0) if load.waiting else replicas, tuple(felt + told))


def _queue(load: ModelLoad, settings: ScalingSettings) -> LoadSignal:
    each = load.waiting / max(load.serving, 1)
    return LoadSignal("queue", each, settings.queue_target, load.waiting / settings.queue_target)


def _first_token(load: ModelLoad, settings: ScalingSettings) -> LoadSignal | None:
    """Only where there is load: what is slow with free slots is so with any number of replicas."""
    if load.first_token_p95 is None:
        return None
    ratio = load.first_token_p95 / settings.first_token_target
    busy = load.waiting > 0 or load.utilisation >= settings.slots_target / 2
    asked = 0.0 if not busy or ratio < _CONTENT else load.serving * max(ratio, 1.0)
    return LoadSignal("first token", load.first_token_p95, settings.first_token_target, asked)


def _taken(load: ModelLoad, settings: ScalingSettings) -> list[LoadSignal]:
    signals = [LoadSignal("slots", load.utilisation, settings.slots_target, load.serving * load.utilisation / settings.slots_target)]
    able = load.able()
    if able > 0:
        share = load.tokens_per_second / able
        signals.append(LoadSignal("tokens", share, settings.slots_target, load.serving * share / settings.slots_target))
    return signals


def _arrivals(load: ModelLoad, settings: ScalingSettings) -> LoadSignal | None:
    one = _served_by_one(load, settings)
    return LoadSignal("arrivals", load.requests_per_second, one, load.requests_per_second / one) if one else None


def _forecast(now: float, load: ModelLoad, settings: ScalingSettings, expected: ExpectedTraffic | None) -> LoadSignal | None:
    one = _served_by_one(load, settings)
    if expected is None or not expected.trusted or not one:
        return None
    lead = load.load_seconds + settings.scale_up_after
    rate = expected.highest(now, now + lead)
    if rate is None:
        return None
    return LoadSignal("forecast", rate, one, rate / one if rate * lead >= _WAKING else 0.0)


def _served_by_one(load: ModelLoad, settings: ScalingSettings) -> float:
    """Requests per second that a replica serves at its target; 0: not known."""
    slots = load.mean_slots()
    return slots * settings.slots_target / load.slot_seconds if slots and load.slot_seconds > 0 else 0.0
