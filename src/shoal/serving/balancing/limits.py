"""When a replica counts as sick, and how it comes back."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BalancerLimits:
    """Raises ConfigError if a value makes no sense."""

    failures: int = 5
    """In a row, for which a replica is ejected."""
    failure_rate: float = 0.5
    """Of the requests of the window, for which it is ejected."""
    enough: int = 10
    """Requests in the window before their rate counts."""
    window: float = 30.0
    """Seconds."""
    ejection: float = 10.0
    """Seconds. Doubles each time, if the replica was well for less than ten times the last."""
    longest_ejection: float = 300.0
    """Seconds."""
    ejected_share: float = 0.5
    """Of the replicas that are not draining, that may be ejected at once, rounded down: a replica that is alone never is."""
    probes: int = 2
    """Requests that an ejected replica has to serve before it counts as well. So many are sent to it at once, at most."""
    slow_start: float = 20.0
    """Seconds in which a replica's share of the requests rises to what it is for the others; 0: at once."""
    pause: float = 1.0
    """Seconds for which a replica that says it is busy is left alone, if it does not say for how long."""
    retry_share: float = 0.2
    """Of the requests, that may be sent to a further replica."""
    retries_at_rest: float = 1.0
    """Per second, allowed in addition, so that a single request can be sent to a further replica."""
    block_tokens: int = 32
    """Tokens of a KV block."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("failures", 1, None),
            ("failure_rate", 0.01, 1),
            ("enough", 1, None),
            ("window", 0.1, None),
            ("ejection", 0.1, None),
            ("longest_ejection", self.ejection, None),
            ("ejected_share", 0, 1),
            ("probes", 1, None),
            ("slow_start", 0, None),
            ("pause", 0.01, None),
            ("retry_share", 0, 1),
            ("retries_at_rest", 0, None),
            ("block_tokens", 1, None),
        ):
            value = getattr(self, name)
            if not (low <= value and (high is None or value <= high)):  # this also catches NaN
                raise ConfigError(f"{name} must be at least {low:g}{'' if high is None else f' and at most {high:g}'}, not {value}")
