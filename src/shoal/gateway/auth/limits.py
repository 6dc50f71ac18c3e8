"""How much each key may use: token buckets per minute, and concurrent requests.

Only `LocalLimiter` counts. It implements `Limiter` so that several processes can share one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

import msgspec

from shoal.errors import RateLimited
from shoal.gateway.auth.key import KeyId, KeyLimits

_MINUTE = 60.0


class Budget(msgspec.Struct, frozen=True):
    """The rest of a limit."""

    limit: int
    remaining: int
    reset: float
    """Seconds until all of it is available again."""


class Allowance(msgspec.Struct, frozen=True):
    """The rest of a key's limits, for the response's headers; None: no limit."""

    requests: Budget | None = None
    tokens: Budget | None = None


class Limiter(Protocol):
    async def enter(self, key: KeyId, limits: KeyLimits) -> Allowance:
        """A request begins; `leave` must follow. Raises RateLimited."""
        ...

    def leave(self, key: KeyId) -> None: ...

    def spend(self, key: KeyId, tokens: int) -> None:
        """Counts tokens of an accepted prompt, or sampled for an answer."""
        ...


class Bucket:
    """Fills evenly, up to a minute's worth. Spending may take it below zero; then it must refill first.

    So an answer of unknown length needs no estimate beforehand, and over time the rate still holds.
    """

    def __init__(self, limit: int, now: float) -> None:
        """limit: per minute."""
        self.limit = limit
        self._level = float(limit)
        self._at = now

    def refit(self, limit: int, now: float) -> None:
        """Changes the limit from now on."""
        self._fill(now)
        self._level += limit - self.limit
        self.limit = limit

    def wait(self, now: float, least: float) -> float:
        """Seconds until it holds at least `least`."""
        self._fill(now)
        return max(least - self._level, 0.0) * _MINUTE / self.limit

    def spend(self, now: float, amount: float) -> None:
        self._fill(now)
        self._level -= amount

    def budget(self, now: float) -> Budget:
        self._fill(now)
        return Budget(self.limit, max(int(self._level), 0), self.wait(now, self.limit))

    def _fill(self, now: float) -> None:
        self._level = min(self._level + max(now - self._at, 0.0) * self.limit / _MINUTE, float(self.limit))
        self._at = now


@dataclass
class _Account:
    running: int = 0
    requests: Bucket | None = None
    tokens: Bucket | None = None


def _fitted(bucket: Bucket | None, limit: int, now: float) -> Bucket | None:
    if not limit:
        return None
    if bucket is None:
        return Bucket(limit, now)
    if bucket.limit != limit:
        bucket.refit(limit, now)
    return bucket


class LocalLimiter:
    """A Limiter in this process."""

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._accounts: dict[KeyId, _Account] = {}

    async def enter(self, key: KeyId, limits: KeyLimits) -> Allowance:
        now = self._now()
        account = self._accounts.setdefault(key, _Account())
        requests = account.requests = _fitted(account.requests, limits.requests, now)
        tokens = account.tokens = _fitted(account.tokens, limits.tokens, now)
        if limits.concurrency and account.running >= limits.concurrency:
            raise RateLimited(f"{account.running} requests of this key are already running (limit {limits.concurrency})", "requests", 1.0)
        if requests is not None and (wait := requests.wait(now, 1.0)):
            raise RateLimited(f"this key may make {limits.requests} requests a minute", "requests", wait)
        if tokens is not None and (wait := tokens.wait(now, 1.0)):
            raise RateLimited(f"this key may use {limits.tokens} tokens a minute", "tokens", wait)
        account.running += 1
        if requests is not None:
            requests.spend(now, 1.0)
        return Allowance(requests and requests.budget(now), tokens and tokens.budget(now))

    def leave(self, key: KeyId) -> None:
        self._accounts[key].running -= 1

    def spend(self, key: KeyId, tokens: int) -> None:
        account = self._accounts.get(key)
        if account is not None and account.tokens is not None:
            account.tokens.spend(self._now(), tokens)
