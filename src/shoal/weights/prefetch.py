"""Which guesses about the next layer's experts are worth a read: those of a kind that has come true often enough of late.

A guess's kind is what speaks for it: its place among the choices of the layer's own router, and its chance by the routing history. Of each
kind it is measured how often a guess that would have been read was needed. That needs no reads, so a kind is measured just the same
before it is trusted, while it is, and after it no longer is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shoal.weights.expected_use import GUESS_RECALL

_REMEMBERED = 256
"""Guesses of a kind of which its accuracy tells, about."""
_PLACES, _CHANCES = 16, 8
"""Kinds: the router's places after this one are as the last, and so many steps of chance."""
WATCHED, UNWATCHED = 32, 480
"""While guessing does not pay, so many steps are guessed about, and so many are not, in turn: guessing takes time, too."""
WORTH = 0.25
"""It pays where so many of the visits have an expert that should be read: a guess takes about a quarter of a read's time."""
_RECENT = 64
"""Visits of which that share tells, about."""


class Guess(NamedTuple):
    expert: int
    kind: int


@dataclass
class Foreseen:
    """Experts, counted since the beginning, of visits about which there were guesses."""

    needed: int = 0
    right: int = 0
    """Needed and guessed."""
    guesses: int = 0
    misses: int = 0
    """Needed, and not held when there were guesses."""
    misses_foreseen: int = 0
    """Of these, guessed by a kind that is trusted."""

    @property
    def recall(self) -> float:
        return self.right / max(self.needed, 1)

    @property
    def accuracy(self) -> float:
        return self.right / max(self.guesses, 1)

    @property
    def coverage(self) -> float:
        return self.misses_foreseen / max(self.misses, 1)


class Prefetch:
    """For one layer after the other. accuracy: what a kind has to reach to be trusted; 0 trusts everything, as tests do."""

    def __init__(self, accuracy: float = GUESS_RECALL) -> None:
        self.foreseen = Foreseen()
        self._accuracy = accuracy
        self._kinds: dict[int, _Kind] = {}
        self._layer = -1
        """The one about which there are guesses; -1: none."""
        self._guesses: dict[int, _Kind] = {}
        self._missing: frozenset[int] = frozenset()
        """Of these guesses, those that are not held."""
        self._trusted: set[int] = set()
        self._paid = 0.0
        """The share of the visits, of late, about which a guess was worth a read."""
        self._step = 0

    @property
    def watching(self) -> bool:
        """Whether to guess at all in this step."""
        return self._step % (WATCHED + UNWATCHED) < WATCHED or self._paid >= WORTH

    def step(self) -> None:
        """A step begins."""
        self._step += 1

    def worth_reading(self, layer: int, guesses: Iterable[Guess], page: Sequence[int]) -> list[int]:
        """Experts that are not held and should be, the likeliest first. page: of each expert of the layer; -1: not held."""
        self._layer = layer
        self._guesses = {guess.expert: self._kinds.setdefault(guess.kind, _Kind()) for guess in guesses}
        missing = [expert for expert in self._guesses if page[expert] < 0]
        self._missing = frozenset(missing)
        worth = [expert for expert in missing if self.trusts(self._guesses[expert])]
        worth.sort(key=lambda expert: -self._guesses[expert].accuracy)
        self._trusted = set(worth)
        self._paid += (bool(worth) - self._paid) / _RECENT
        return worth

    def trusts(self, kind: _Kind) -> bool:
        return kind.accuracy >= self._accuracy

    def compare(self, layer: int, needed: Sequence[int], missed: Iterable[int]) -> None:
        """What a visit needs, and what of that was not held when there were guesses about it: a read of a guess counts as not held."""
        if layer == self._layer:
            wanted, foreseen = set(needed), self.foreseen
            for expert in self._missing:
                self._guesses[expert].learn(expert in wanted)
            misses = self._missing & wanted | set(missed)
            foreseen.needed += len(wanted)
            foreseen.guesses += len(self._guesses)
            foreseen.right += len(wanted & self._guesses.keys())
            foreseen.misses += len(misses)
            foreseen.misses_foreseen += len(misses & self._trusted)
        self.forget()

    def forget(self) -> None:
        """The guesses are about a visit that does not come."""
        self._layer, self._guesses, self._missing, self._trusted = -1, {}, frozenset(), set()


class _Kind:
    def __init__(self) -> None:
        self._right = self._all = 0.0

    @property
    def accuracy(self) -> float:
        """As if two guesses more had been wrong: so it takes a dozen to be trusted."""
        return self._right / (self._all + 2)

    def learn(self, right: bool) -> None:
        keep = 1 - 1 / _REMEMBERED
        self._right = self._right * keep + right
        self._all = self._all * keep + 1


def combined(by_router: Sequence[int], by_history: Mapping[int, float]) -> list[Guess]:
    """by_router: the choices of the layer's router, the best first. by_history: chances from 0 to 1."""
    place = {expert: min(at, _PLACES - 1) + 1 for at, expert in enumerate(by_router)}
    return [
        Guess(expert, place.get(expert, 0) * (_CHANCES + 1) + round(by_history.get(expert, 0.0) * _CHANCES))
        for expert in dict.fromkeys([*place, *by_history])
    ]
