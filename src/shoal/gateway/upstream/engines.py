"""The models of a server and of its upstreams."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from shoal.errors import NotReady, UnknownModel
from shoal.gateway.engine import Engine
from shoal.gateway.engines import Engines
from shoal.gateway.upstream.upstreams import Upstreams
from shoal.observed.models import UpstreamView
from shoal.observed.trace_span import TraceSpan
from shoal.serving.aliases import resolved


class EnginesAndUpstreams:
    """A gateway.engines.Engines. Models that upstreams alone have come after the others, and have no engine."""

    def __init__(self, engines: Engines, upstreams: Upstreams) -> None:
        self.here, self._upstreams = engines, upstreams

    @property
    def names(self) -> Sequence[str]:
        here = self.here.names
        return [*here, *(name for name in self._upstreams.states if name not in here and name not in self.here.aliases)]

    @property
    def upstreams(self) -> Sequence[UpstreamView]:
        return self._upstreams.views

    def via(self, model: str) -> Sequence[str]:
        own = self._upstreams.id
        if self.here.states.get(model, "it has no engine") == "":
            return [own]
        ways = [each.via for view in self.upstreams for each in view.models if each.name == model]
        return [own, *(id for id in ways[0] if all(id in way for way in ways))] if ways else [own]

    @property
    def states(self) -> Mapping[str, str]:
        here, there = self.here.states, self._upstreams.states

        def state(name: str) -> str:
            why = here.get(name)
            return there[name] if why is None else why and there.get(name, why)

        return {name: state(name) for name in self.names}

    @property
    def state(self) -> str:
        """Models of this server that upstreams serve as well are not missed; without models of its own, upstreams are."""
        if not self.here.names:
            if "" in self._upstreams.states.values():
                return ""
            return "; ".join(f"{view.url}: {view.state}" for view in self.upstreams if view.state) or "no upstream has a model"
        if not (state := self.here.state):
            return ""
        return state if any(self.states[name] for name in self.here.names) else ""

    def resolve(self, model: str | None) -> str:
        names = self.names
        if model is None and names:
            return names[0]
        if model is not None and (name := resolved(self.aliases, model)) in names:
            return name
        try:
            return self.here.resolve(model)
        except UnknownModel as error:
            if self._upstreams.complete:
                raise UnknownModel(error.name, [*names]) from None
            raise NotReady(
                f"the model '{error.name}' is not known here, and not all upstreams have said yet which models they have"
            ) from None

    async def find(self, model: str | None) -> Engine:
        name = self.resolve(model)
        if name in self.here.names:
            return await self.here.find(model)
        raise NotReady(f"the model '{name}' is served by other servers, to which this endpoint sends nothing")

    def watch(self, changed: Callable[[], None]) -> None:
        self.here.watch(changed)
        self._upstreams.watch(changed)

    # As the others

    @property
    def aliases(self) -> Mapping[str, str]:
        return self.here.aliases

    @property
    def all(self) -> Sequence[Engine]:
        return self.here.all

    def observe_request(self, endpoint: str, outcome: str, prompt_tokens: int) -> None:
        self.here.observe_request(endpoint, outcome, prompt_tokens)

    def observe_cache(self, taken: int, evicted: int) -> None:
        self.here.observe_cache(taken, evicted)

    def observe_upstream(self, url: str, ending: str, first: float, whole: float, prompt: int, completion: int) -> None:
        self.here.observe_upstream(url, ending, first, whole, prompt, completion)

    def upstream_changed(self, view: UpstreamView) -> None:
        self.here.upstream_changed(view)

    def traced(self, spans: Sequence[TraceSpan]) -> None:
        self.here.traced(spans)

    async def scrape(self) -> bytes:
        return await self.here.scrape()
