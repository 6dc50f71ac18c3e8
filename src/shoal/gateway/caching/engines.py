"""Engines in front of engines: each gives its answers again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from shoal.gateway.caching.cache import AnswerCache
from shoal.gateway.caching.engine import CachingEngine
from shoal.gateway.engine import Engine
from shoal.gateway.engines import Engines
from shoal.observed.models import UpstreamView
from shoal.observed.trace_span import TraceSpan


class CachingEngines:
    """A gateway.engines.Engines."""

    def __init__(self, engines: Engines, cache: AnswerCache) -> None:
        self._engines, self._cache = engines, cache
        self._before: dict[Engine, CachingEngine] = {}
        engines.watch(self._follow)
        self._follow()

    def _follow(self) -> None:
        """Has one in front of each engine that is there."""
        self._before = {engine: self._in_front(engine) for engine in self._engines.all}

    def _in_front(self, engine: Engine) -> CachingEngine:
        return self._before.get(engine) or CachingEngine(engine, self._cache)

    @property
    def all(self) -> Sequence[Engine]:
        return [*self._before.values()]

    async def find(self, model: str | None) -> Engine:
        return self._in_front(await self._engines.find(model))

    # As the others

    @property
    def names(self) -> Sequence[str]:
        return self._engines.names

    @property
    def aliases(self) -> Mapping[str, str]:
        return self._engines.aliases

    @property
    def upstreams(self) -> Sequence[UpstreamView]:
        return self._engines.upstreams

    def via(self, model: str) -> Sequence[str]:
        return self._engines.via(model)

    @property
    def states(self) -> Mapping[str, str]:
        return self._engines.states

    @property
    def state(self) -> str:
        return self._engines.state

    def resolve(self, model: str | None) -> str:
        return self._engines.resolve(model)

    def watch(self, changed: Callable[[], None]) -> None:
        self._engines.watch(changed)

    def observe_request(self, endpoint: str, outcome: str, prompt_tokens: int) -> None:
        self._engines.observe_request(endpoint, outcome, prompt_tokens)

    def observe_cache(self, taken: int, evicted: int) -> None:
        self._engines.observe_cache(taken, evicted)

    def observe_upstream(self, url: str, ending: str, first: float, whole: float, prompt: int, completion: int) -> None:
        self._engines.observe_upstream(url, ending, first, whole, prompt, completion)

    def upstream_changed(self, view: UpstreamView) -> None:
        self._engines.upstream_changed(view)

    def traced(self, spans: Sequence[TraceSpan]) -> None:
        self._engines.traced(spans)

    async def scrape(self) -> bytes:
        return await self._engines.scrape()
