"""What the gateway needs from whatever runs the models of a server: an engine for each of them, and what concerns them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from shoal.errors import ConfigError, NotReady, UnknownModel
from shoal.gateway.engine import Engine
from shoal.observed.models import UpstreamView
from shoal.observed.trace_span import TraceSpan
from shoal.serving.aliases import check, resolved, standing


class Telemetry(Protocol):
    """Where a server counts, and where its traces go."""

    def observe_request(self, endpoint: str, outcome: str, prompt_tokens: int) -> None:
        """A request was refused before it was known for which model it is: see Engine."""
        ...

    def observe_cache(self, taken: int, evicted: int) -> None:
        """taken: bytes of the response cache. evicted: answers that it has given up for others since the last time."""
        ...

    def observe_upstream(self, url: str, ending: str, first: float, whole: float, prompt: int, completion: int) -> None:
        """An upstream was asked. ending: see serving.balancing.inquiry.Ending. first: seconds to the first byte of its answer; 0: none came.
        whole: seconds to the end. prompt, completion: tokens."""
        ...

    def upstream_changed(self, view: UpstreamView) -> None:
        """An upstream takes requests, or does not any more, or has other models."""
        ...

    def traced(self, spans: Sequence[TraceSpan]) -> None:
        """Sends spans of requests to where traces go. Does not wait."""
        ...

    async def scrape(self) -> bytes: ...


class Engines(Telemetry, Protocol):
    @property
    def names(self) -> Sequence[str]:
        """The models that may be asked for, the default first; without aliases. Some may have no engine yet."""
        ...

    @property
    def aliases(self) -> Mapping[str, str]:
        """Other names for models, and what each stands for: a model, or another alias."""
        ...

    @property
    def all(self) -> Sequence[Engine]:
        """The engines that are there now. One that goes ends its answers."""
        ...

    @property
    def upstreams(self) -> Sequence[UpstreamView]:
        """Other servers that answer for some of `names`."""
        ...

    def via(self, model: str) -> Sequence[str]:
        """Ids of the servers that a request for one of `names` passes through, this one's first; empty: it goes nowhere else."""
        ...

    @property
    def states(self) -> Mapping[str, str]:
        """Of each of `names`: '' while it is served, otherwise why it is not."""
        ...

    @property
    def state(self) -> str:
        """'' while every model that the server was started with is served; otherwise why it is not."""
        ...

    def resolve(self, model: str | None) -> str:
        """The name of the model that a name or an alias stands for; None: the default. Raises UnknownModel, NotReady."""
        ...

    async def find(self, model: str | None) -> Engine:
        """The engine for a model's name or alias; None: for the default. May wait until the model is loaded. Raises UnknownModel,
        NotReady."""
        ...

    def watch(self, changed: Callable[[], None]) -> None:
        """changed: called after every change of `names`, `aliases` or `all`."""
        ...


class ServedEngines:
    """Engines of this process, which may come and go."""

    def __init__(self, engines: Sequence[Engine], telemetry: Telemetry, aliases: Mapping[str, str] | None = None) -> None:
        """engines: those that the server is started with, the default first. Raises ConfigError for an alias that cannot be."""
        self._engines = {engine.name: engine for engine in engines}
        self._needed = tuple(self._engines)
        self._telemetry = telemetry
        self._aliases = dict(aliases or {})
        check(self._aliases, self.names)
        self._watchers: list[Callable[[], None]] = []
        self._index()

    @property
    def names(self) -> Sequence[str]:
        return [*self._engines]

    @property
    def aliases(self) -> Mapping[str, str]:
        return self._aliases

    @property
    def all(self) -> Sequence[Engine]:
        return [*self._engines.values()]

    @property
    def upstreams(self) -> Sequence[UpstreamView]:
        return ()

    def via(self, model: str) -> Sequence[str]:
        return ()

    @property
    def states(self) -> Mapping[str, str]:
        return {name: engine.state for name, engine in self._engines.items()}

    @property
    def state(self) -> str:
        states = self.states
        missing = {name: why for name in self._needed if (why := states.get(name, "it was unloaded"))}
        if len(self._needed) == 1:
            return "".join(missing.values())
        return "; ".join(f"{name}: {why}" for name, why in missing.items())

    def resolve(self, model: str | None) -> str:
        names = self.names
        if model is None:
            if not names:
                raise NotReady("no model is loaded")
            return names[0]
        if (name := resolved(self._aliases, model)) not in names:
            raise UnknownModel(name, [*names, *standing(self._aliases, names)])
        return name

    async def find(self, model: str | None) -> Engine:
        return self._found.get(model) or await self.missing(self.resolve(model))

    async def missing(self, name: str) -> Engine:
        """The engine of one of `names` that has none: this may load it. Raises NotReady."""
        raise NotReady(f"the model '{name}' is not loaded")

    def watch(self, changed: Callable[[], None]) -> None:
        self._watchers.append(changed)

    # Changes

    def add(self, engine: Engine) -> None:
        """Its model may be asked for from now on. One of that name gives way. Raises ConfigError if an alias has that name."""
        if engine.name in self._aliases:
            raise ConfigError(f"'{engine.name}' is an alias, which stands for '{self._aliases[engine.name]}'; remove it first")
        self._put(engine)

    def remove(self, name: str) -> None:
        """Ends its answers. Aliases of the model stay, and stand for nothing until it is back."""
        if self._engines.pop(name, None) is not None:
            self._changed()

    def rename(self, aliases: Mapping[str, str]) -> None:
        """Sets all aliases. Raises ConfigError."""
        check(aliases, self.names)
        self._aliases = dict(aliases)
        self._changed()

    def _put(self, engine: Engine) -> None:
        self._engines[engine.name] = engine
        self._changed()

    def _changed(self) -> None:
        self._index()
        for changed in self._watchers:
            changed()

    def _index(self) -> None:
        """Every name that a request may give, so that finding one is a look into a dictionary."""
        self._found: dict[str | None, Engine] = {**self._engines}
        for alias in standing(self._aliases, self._engines):
            self._found[alias] = self._engines[resolved(self._aliases, alias)]
        if (default := next(iter(self.names), None)) in self._engines:
            self._found[None] = self._engines[default]

    # Telemetry

    def observe_request(self, endpoint: str, outcome: str, prompt_tokens: int) -> None:
        self._telemetry.observe_request(endpoint, outcome, prompt_tokens)

    def observe_cache(self, taken: int, evicted: int) -> None:
        self._telemetry.observe_cache(taken, evicted)

    def observe_upstream(self, url: str, ending: str, first: float, whole: float, prompt: int, completion: int) -> None:
        self._telemetry.observe_upstream(url, ending, first, whole, prompt, completion)

    def upstream_changed(self, view: UpstreamView) -> None:
        self._telemetry.upstream_changed(view)

    def traced(self, spans: Sequence[TraceSpan]) -> None:
        self._telemetry.traced(spans)

    async def scrape(self) -> bytes:
        return await self._telemetry.scrape()
