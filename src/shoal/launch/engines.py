"""The models of a head as the gateway sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shoal.gateway.engine import Engine
from shoal.gateway.engines import ServedEngines
from shoal.node.head import Head
from shoal.node.model_keeper import ModelKeeper


class HeadEngines(ServedEngines):
    """They come and go as the head's do. With a keeper, models come when requests ask for them, and have aliases."""

    def __init__(self, head: Head, keeper: ModelKeeper | None = None) -> None:
        self._head, self._keeper = head, keeper
        super().__init__([*head.engines.values()], head)
        head.watch(self._follow)
        if keeper is not None:
            keeper.watch(self._learn)
            self._learn()

    @property
    def names(self) -> Sequence[str]:
        return [*self._engines, *(self._keeper.loadable if self._keeper is not None else ())]

    @property
    def states(self) -> Mapping[str, str]:
        keeper = self._keeper
        unloaded = {} if keeper is None else {name: keeper.state(name) for name in keeper.loadable}
        return {**{name: engine.state for name, engine in self._engines.items()}, **unloaded}

    @property
    def state(self) -> str:
        """A model that a request would load again is not missed."""
        if self._keeper is None or not self._keeper.loads:
            return super().state
        return "; ".join(f"{name}: {engine.state}" for name, engine in self._engines.items() if name in self._needed and engine.state)

    async def find(self, model: str | None) -> Engine:
        engine = self._found.get(model)
        return engine if engine is not None and not engine.state else await self.missing(self.resolve(model))

    async def missing(self, name: str) -> Engine:
        if self._keeper is not None and self._keeper.loads:
            return await self._keeper.wanted(name)
        return self._engines.get(name) or await super().missing(name)

    def _follow(self) -> None:
        for engine in [engine for engine in self.all if self._head.engines.get(engine.name) is not engine]:
            self.remove(engine.name)
        for engine in [engine for name, engine in self._head.engines.items() if name not in self._engines]:
            self.add(engine)

    def _learn(self) -> None:
        """Aliases or loadable models are others now."""
        assert self._keeper is not None
        self._aliases = dict(self._keeper.aliases)
        self._changed()
