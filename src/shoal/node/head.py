"""A head: the models that it serves on the nodes that join, and what is told of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import time

from shoal.config import HeadSettings
from shoal.control import messages as control
from shoal.discovery.topology import Topology
from shoal.errors import ConfigError, UnknownModel
from shoal.node.coordinator import Coordinator
from shoal.node.followers import Changing, Followers, Leadership
from shoal.node.gauges import gauge
from shoal.node.host_environment import HostEnvironment
from shoal.node.inheritance import bequeathed
from shoal.node.model_engine import ModelEngine, ModelOffer
from shoal.node.operations import Operations
from shoal.node.upstream_views import UpstreamViews
from shoal.observed.models import UpstreamView
from shoal.observed.trace_span import TraceSpan
from shoal.placement.expectation import Expectation
from shoal.placement.partition import Placement
from shoal.security.credentials import Credentials
from shoal.telemetry.metrics import Metrics, ModelMetrics
from shoal.telemetry.traces import Traces, export_to

_LOOK = 0.2  # seconds between checks whether requests are stranded
_NO_MODEL = ""
"""The label of requests for models that are not here."""


class Head:
    def __init__(
        self,
        settings: HeadSettings,
        offers: Sequence[ModelOffer],
        machine: HostEnvironment | None = None,
        leadership: Leadership | None = None,
        files: Changing | None = None,
        authority: str = "",
    ) -> None:
        """offers: the models, the default first. leadership: of a head that others follow; files, authority: what they get beside the requests,
        see followers.Changing and control.messages.Serves."""
        self.settings = settings
        self.metrics = Metrics()
        self.engines: dict[str, ModelEngine] = {}
        """By the names of their models, the default first."""
        self._machine = machine or HostEnvironment()
        self._authority = authority
        followers = None if leadership is None else Followers(leadership, self._served, files)
        self.coordinator = Coordinator(settings, self._machine, self, followers)
        traces = settings.api.traces
        self._traces = Traces(export_to(traces), self.coordinator.recorder.timelines) if traces else None
        self._watchers: list[Callable[[], None]] = []
        self.upstreams = UpstreamViews(self.coordinator.recorder.events, settings.api.upstreams)
        self.operator = Operations(self.coordinator, self.engines, time(), lambda: self.upstreams.all)
        self._keeps = False
        for offer in offers:
            self.serve(offer)

    # Models

    def serve(self, offer: ModelOffer) -> ModelEngine:
        """Serves one more model, as soon as nodes suffice. Raises ConfigError if one of that name is served already."""
        name = offer.model.name
        if name in self.engines:
            raise ConfigError(f"the model '{name}' is served already")
        engine = ModelEngine(offer, self.coordinator, self.metrics, self.settings, self._machine.rng)
        if self._keeps and self.settings.state_folder is not None:
            engine.keep_requests(self.settings.state_folder)
        self.engines[name] = engine
        self._changed()
        return engine

    async def unload(self, name: str, reason: str) -> None:
        """Ends a model's requests with the reason, and frees what the nodes hold of it. Raises UnknownModel."""
        if (engine := self.engines.pop(name, None)) is None:
            raise UnknownModel(name, [*self.engines])
        self._changed()
        await engine.close(reason)

    def _served(self) -> control.Serves:
        """What a successor needs to know."""
        rules, models = bequeathed(self.settings, self.engines.values())
        return control.Serves(settings=rules, models=models, authority=self._authority)

    def watch(self, changed: Callable[[], None]) -> None:
        """changed: called when a model has come or is about to go."""
        self._watchers.append(changed)

    def _changed(self) -> None:
        for changed in self._watchers:
            changed()

    @property
    def engine(self) -> ModelEngine:
        """Of the default model."""
        return next(iter(self.engines.values()))

    # Lifecycle

    async def start(self) -> None:
        """Reads the answers that a previous head left unfinished, and listens for nodes. Raises ConfigError."""
        self._keeps = True
        for engine in self.engines.values():
            if self.settings.state_folder is not None:
                engine.keep_requests(self.settings.state_folder)
        await self.coordinator.start()
        self.coordinator.spawn(self._rescue())

    async def stop(self, reason: str = "the head shut down") -> None:
        """Sends the nodes home and ends every request."""
        await self.coordinator.stop(reason)
        await self._end()
        self._machine.close()

    async def stand_down(self, reason: str) -> None:
        """Ends every request here with the reason: another head goes on with them, and the nodes look for it. `seal` comes before."""
        await self.coordinator.stand_down(reason)
        await self._end()

    def seal(self) -> None:
        """Records no more of the requests, because they go on elsewhere."""
        for engine in self.engines.values():
            engine.seal_log()

    async def _end(self) -> None:
        for engine in self.engines.values():
            await engine.end_log()
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)

    def refuse(self, reason: str) -> None:
        """Ends every request with that reason, and accepts no more."""
        self.coordinator.refuse(reason)

    async def until_ready(self) -> None:
        """See Coordinator.until_ready."""
        await self.coordinator.until_ready()

    async def _rescue(self) -> None:
        """Requests of a copy for which no route is in sight go on at another copy, and copies that were to stop go when they are done."""
        while True:
            await asyncio.sleep(_LOOK)
            for engine in self.engines.values():
                engine.copies.rescue()
                engine.copies.look()
                engine.close_finished()

    # The cluster

    @property
    def credentials(self) -> Credentials | None:
        """What it shows to the machines of its cluster; None: it is not protected."""
        return self._machine.credentials

    @property
    def control_port(self) -> int:
        return self.coordinator.control_port

    @property
    def members(self) -> set[str]:
        """Names of the nodes in the cluster."""
        return {member.name for member in self.coordinator.cluster.members.values()}

    @property
    def state(self) -> str:
        """Why not all models are served, for people; '' if they are."""
        states = {name: engine.state for name, engine in self.engines.items()}
        if len(states) == 1:
            return "".join(states.values())
        return "; ".join(f"{name}: {state}" for name, state in states.items() if state)

    @property
    def roomless(self) -> list[str]:
        """Copies that find no nodes beside others that serve, and why, for people."""
        served = [engine for engine in self.engines.values() if not engine.state]
        return [f"{copy.pipeline.id} waits for room: {copy.pipeline.why}" for engine in served for copy in engine.copies if copy.lost]

    @property
    def activities(self) -> list[str]:
        """What nodes do, or did last, that takes long, for people."""
        return self.coordinator.activities

    @property
    def placements(self) -> dict[str, tuple[Placement, Expectation | None]]:
        """Of each copy that serves, by its name for people; with what it is expected to give."""
        runners = self.coordinator.runners
        alone = len(runners) == len(self.engines)
        return {
            id.model if alone else str(id): (placement, runner.expectation())
            for id, runner in runners.items()
            if runner.serving and (placement := runner.pipeline.placement) is not None
        }

    @property
    def placement(self) -> Placement | None:
        """Of the first copy of the default model."""
        return self.engine.copies.first.pipeline.placement

    def topology(self) -> Topology:
        """What is published of the cluster."""
        return self.coordinator.published()

    # Telemetry

    def observe_request(self, endpoint: str, outcome: str, prompt_tokens: int) -> None:
        """One that is for no model that is here."""
        self.metrics.models.setdefault(_NO_MODEL, ModelMetrics(_NO_MODEL)).requests.add(1, endpoint, outcome)

    def observe_cache(self, taken: int, evicted: int) -> None:
        self.metrics.nodes.cache_bytes.set(taken)
        self.metrics.nodes.cache_evictions.add(evicted)

    def observe_upstream(self, url: str, ending: str, first: float, whole: float, prompt: int, completion: int) -> None:
        self.metrics.upstreams.request(url, ending, first, whole, prompt, completion)

    def upstream_changed(self, view: UpstreamView) -> None:
        self.metrics.upstreams.state(view.url, not view.state)
        self.upstreams.changed(view)

    def traced(self, spans: Sequence[TraceSpan]) -> None:
        if self._traces is not None:
            self._traces.send(spans)

    async def scrape(self) -> bytes:
        """The metrics in Prometheus' format."""
        gauge(self.metrics, self.coordinator)
        return await asyncio.to_thread(self.metrics.text)  # of thousands of experts it takes as long as several steps

    def heartbeat(self, node: str, heartbeat: control.Heartbeat) -> None:
        nodes = self.metrics.nodes
        nodes.resident.set(heartbeat.resident, node)
        nodes.fetched(node, heartbeat.fetched_from_peers, sum(report.fetched_from_origin for report in heartbeat.pipelines))

    def gone(self, node: str) -> None:
        self.metrics.forget(node)
