"""Which experts followed which in the routes of the tokens so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SLOWEST = 1 / 64
"""How much a new observation weighs against those before it, at least: so old ones are forgotten."""


class Expected(NamedTuple):
    """experts: [n], the likeliest first. chances: [n], what share of their contexts they followed."""

    experts: NDArray[np.intp]
    chances: NDArray[np.float32]


class RoutingHistory:
    """For each expert of a layer, how often it came after each expert of the layer before (of the same token; for the first layer, of the
    token before), and after each expert of its own layer (of the token before). A prediction is the mean over the experts of both contexts.

    The tables take 4 · n² bytes for each layer of n experts, and a visit costs a few vector operations over k rows of them.

    experts: of each layer; 0 where a layer has none.
    """

    def __init__(self, experts: Sequence[int]) -> None:
        layers = [layer for layer, count in enumerate(experts) if count]
        self._before = dict(zip(layers, [*layers[-1:], *layers[:-1]], strict=True))
        self._after_layer = {layer: _Followers(experts[before], experts[layer]) for layer, before in self._before.items()}
        self._after_token = {layer: _Followers(experts[layer], experts[layer]) for layer in layers}
        self._last: dict[int, NDArray[np.intp]] = {}
        """By layer: what its last visit needed."""

    @property
    def nbytes(self) -> int:
        return sum(followers.chances.nbytes for table in (self._after_layer, self._after_token) for followers in table.values())

    def saw(self, layer: int, experts: Sequence[int]) -> None:
        """A visit to `layer` needs `experts`, each once."""
        now = np.asarray(experts, np.intp)
        if (before := self._last.get(self._before[layer])) is not None:
            self._after_layer[layer].learn(before, now)
        if (before := self._last.get(layer)) is not None:
            self._after_token[layer].learn(before, now)
        self._last[layer] = now

    def predict(self, layer: int, count: int) -> Expected:
        """The `count` likeliest experts of the next visit to `layer`, which is the next of all visits; fewer if fewer ever followed."""
        contexts = [
            table[layer].chances[last].sum(axis=0, dtype=np.float32) / np.float32(len(last))
            for table, at in ((self._after_layer, self._before[layer]), (self._after_token, layer))
            if (last := self._last.get(at)) is not None
        ]
        if not contexts:
            return Expected(np.empty(0, np.intp), np.empty(0, np.float32))
        chances: NDArray[np.float32] = np.minimum(sum(contexts[1:], contexts[0]) / np.float32(len(contexts)), np.float32(1))
        best = np.argsort(-chances, kind="stable")[:count]
        best = best[chances[best] > 0]
        return Expected(best, chances[best])

    def interrupt(self) -> None:
        """The next visits do not follow those before; what was learned stays."""
        self._last.clear()


class _Followers:
    def __init__(self, contexts: int, experts: int) -> None:
        self.chances = np.zeros((contexts, experts), np.float16)
        """How often each expert followed each context, from 0 to 1."""
        self._seen = np.zeros(contexts, np.int32)

    def learn(self, contexts: NDArray[np.intp], experts: NDArray[np.intp]) -> None:
        weight = np.maximum(1 / (self._seen[contexts] + 2), SLOWEST).astype(np.float32)[:, None]  # [contexts, 1]
        rows = self.chances[contexts].astype(np.float32)
        rows -= weight * rows
        rows[:, experts] += weight
        self.chances[contexts] = np.minimum(rows, 1)
        self._seen[contexts] += 1
