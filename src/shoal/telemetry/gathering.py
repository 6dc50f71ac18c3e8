"""Counts what happens too often for an event each, such as refused requests, into one event every few seconds. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Generic, TypeVar

T = TypeVar("T")


class Gathering(Generic[T]):
    """The first of a kind is told at once, further ones together when `every` seconds have passed."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._counts: Counter[T] = Counter()
        self._told: dict[T, float] = {}

    def add(self, what: T, count: int = 1) -> None:
        self._counts[what] += count

    def due(self, now: float) -> list[tuple[T, int]]:
        """What is to be told now, with the count since it was last told. now: seconds."""
        out = [(what, n) for what, n in self._counts.items() if n > 0 and now - self._told.get(what, -self._every) >= self._every]
        for what, _ in out:
            self._told[what] = now
            del self._counts[what]
        return out
