"""Guesses about what the layer after this one will need, while this one waits or computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shoal.executor.base import Floats
from shoal.executor.next_router import NextRouter
from shoal.weights.prefetch import Prefetch, combined
from shoal.weights.routing_history import RoutingHistory

MOST_ROWS = 4
"""Of a step about which there are guesses: with more, most of what is guessed is needed anyway, and a guess takes longer."""

Routers = Callable[[int], NextRouter | None]
"""By layer; None where its weights do not stay in memory."""


class Foresight:
    """experts: of each layer; 0 where a layer has none. routers, history: whether guesses come from there."""

    def __init__(
        self, experts: Sequence[int], routers: Routers | None = None, history: bool = True, prefetch: Prefetch | None = None
    ) -> None:
        layers = [layer for layer, count in enumerate(experts) if count]
        self._following = dict(zip(layers, [*layers[1:], *layers[:1]], strict=True))
        self._previous = len(experts)
        """The layer of the visit before."""
        self._routers = routers
        self._made: dict[int, NextRouter | None] = {}
        self._history = RoutingHistory(experts) if history else None
        self._needed: Sequence[int] = ()
        self._watched = False
        self.prefetch = prefetch or Prefetch()

    def close(self) -> None:
        """Lets go of the routers' memory."""
        self._routers, self._made = None, {}

    def following(self, layer: int) -> int:
        """The next layer with experts; of the last one, the first."""
        return self._following[layer]

    def compare(self, layer: int, needed: Sequence[int], page: Sequence[int], rows: int) -> None:
        """A visit begins that needs these. page: of each expert; -1: not held."""
        if layer <= self._previous:  # a step begins
            self.prefetch.step()
            watched = rows <= MOST_ROWS and self.prefetch.watching
            if self._history is not None and not (watched and self._watched):
                self._history.interrupt()
            self._watched = watched
        self.prefetch.compare(layer, needed, [expert for expert in needed if page[expert] < 0])
        if self._watched and self._history is not None:
            self._history.saw(layer, needed)
        self._needed, self._previous = needed, layer

    def worth_reading(self, layer: int, hidden: Floats, page: Sequence[int]) -> list[int]:
        """Experts of the layer that follows `layer`, the likeliest first. hidden: [rows, hidden] after the attention of `layer`. page: of
        the following layer."""
        if not self._watched:
            return []
        following = self._following[layer]
        by_router, by_history = list[int](), dict[int, float]()
        if following > layer and (router := self._router(following)) is not None:
            by_router = router.choices(hidden)
        if self._history is not None:
            experts, chances = self._history.predict(following, len(self._needed))
            by_history = dict(zip(experts.tolist(), chances.tolist(), strict=True))
        return self.prefetch.worth_reading(following, combined(by_router, by_history), page)

    def _router(self, layer: int) -> NextRouter | None:
        if layer not in self._made and self._routers is not None:
            self._made[layer] = self._routers(layer)
        return self._made.get(layer)
