"""What operators ask of a head, and what they have it do: the gateway's Operator protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from statistics import median
from typing import Protocol

import msgspec

from shoal import __version__
from shoal.control.messages import DismissRequest
from shoal.errors import CapacityError, ShoalError, UnknownObject
from shoal.membership.path import Path
from shoal.membership.route_machine import RouteMachine
from shoal.models.spec import Experts
from shoal.node.advice import advice, attention
from shoal.node.cluster_view import machine_view, measured, stage_views
from shoal.node.coordinator import Coordinator
from shoal.node.model_engine import ModelEngine
from shoal.node.pipeline_runner import PipelineRunner
from shoal.node.pulls import Pulls
from shoal.observed.cluster import (
    ActionResult,
    ClusterView,
    ExpertsView,
    Invitation,
    ModelView,
    NodeAction,
    PipelineView,
    PlanView,
    RequestsView,
    StageView,
)
from shoal.observed.event import EventKind, EventPage
from shoal.observed.fleet_plan import FleetPlan
from shoal.observed.history import History
from shoal.observed.models import LoadedModel, ModelsView, RegisteredModel, UpstreamView
from shoal.observed.requests import RequestView, Timeline
from shoal.pipeline_id import PipelineId
from shoal.placement.partition import Placement

_FIXED = "this head serves the model that it was started with; start one with `shoal up` or `shoal serve`"
_RECENT = 300  # steps that the medians of stages are taken over
_EVENTS = 500  # of the latest, that may need attention
_LOOKED_AT = 8  # stages without which the cluster is planned for advice


class LiveModels(Protocol):
    """See node.model_keeper.ModelKeeper."""

    @property
    def aliases(self) -> Mapping[str, str]: ...
    @property
    def loading(self) -> list[str]: ...
    @property
    def failed(self) -> Mapping[str, str]: ...
    @property
    def known(self) -> Mapping[str, RegisteredModel]: ...
    def begin(self, reference: str, replicas: int = 0) -> str: ...
    def bounded(self, replicas: int) -> tuple[int, str]: ...
    async def unload(self, name: str, reason: str) -> None: ...
    def alias(self, alias: str, target: str) -> str: ...


class Operations:
    def __init__(
        self,
        coordinator: Coordinator,
        models: Mapping[str, ModelEngine],
        started: float,
        upstreams: Callable[[], list[UpstreamView]] = list,
    ) -> None:
        """models: by name, the default first; they may come and go. upstreams: other servers that answer for some models."""
        self._coordinator, self._models, self._started, self._upstreams = coordinator, models, started, upstreams
        self.keeper: LiveModels | None = None
        """Loads and unloads models; None: this head serves what it was started with."""
        self.fleet: Callable[[], FleetPlan] | None = None
        """Plans the copies of models; None: nobody does."""
        self.invitation: Callable[[], Invitation] | None = None
        """Makes one; None: how nodes join is not known here."""
        self._pulls = Pulls(self._pulled)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._without: dict[PipelineId, dict[str, float]] = {}
        """By node, how many times as fast a pipeline is predicted to be without it."""
        self._looked_at: dict[PipelineId, object] = {}
        """The route and the speeds for which that was planned, or is being planned."""
        self._looking = False

    def _runner(self, pipeline: str) -> PipelineRunner:
        """pipeline: see Operator.cluster. Raises UnknownObject."""
        runners = self._coordinator.runners
        found = next((runner for id, runner in runners.items() if pipeline in ("", str(id))), None)
        if found is None:
            raise UnknownObject("pipeline", pipeline or "of any model")
        return found

    async def cluster(self, pipeline: str) -> ClusterView:
        return self._view(self._runner(pipeline))

    def _view(self, runner: PipelineRunner) -> ClusterView:
        c = self._coordinator
        pipeline, recorder, now = runner.pipeline, c.recorder, c.now()
        topology, engine = c.topology(runner), runner.model.engine
        machines = [machine_view(state, pipeline, c.roster, now) for state in topology.nodes.values()]
        hops = runner.record.hops
        steps = [] if runner.driver is None else runner.driver.timings.latest(_RECENT)
        stages = stage_views(pipeline, topology, steps, hops)
        requests = _requests(runner)
        reason = pipeline.moving or pipeline.progress
        events = islice(reversed(recorder.events), _EVENTS)
        model = self._models[pipeline.id.model].model
        spec, expectation = model.spec, runner.expectation()
        return ClusterView(
            cluster=c.name,
            version=__version__,
            at=recorder.at,
            started=self._started,
            model=ModelView(
                model.name,
                model.reference,
                len(spec.layers),
                runner.model.context,
                sum(machine.weights for machine in machines),
                max((part.count for layer in spec.layers if isinstance(part := layer.feed_forward, Experts)), default=0),
            ),
            state=pipeline.state,
            reason=reason,
            epoch=pipeline.epoch,
            machines=machines,
            stages=stages,
            requests=requests,
            predicted=pipeline.placement.tokens_per_second if pipeline.placement is not None else 0.0,
            predicted_single=expectation.alone if expectation is not None else 0.0,
            measured=runner.record.tokens_per_second,
            last_hop=median(hops[-1]) if hops and hops[-1] else 0.0,
            advice=advice(stages, self._changes(runner)),
            attention=attention(pipeline.state, reason, machines, requests, engine.queue, events, recorder.at),
            pipeline=str(pipeline.id),
            pipelines=[_pipeline_view(other) for other in c.runners.values()],
        )

    def _changes(self, runner: PipelineRunner) -> dict[str, float]:
        """What is known of that. It is planned again when the route or a speed changes, in a thread, and is then in the next view."""
        pipeline = runner.pipeline
        path = pipeline.serving
        key = None if path is None else (path.epoch, *((n, m.slower, m.draining, m.cap) for n, m in pipeline.members.items()))
        if key != self._looked_at.get(pipeline.id) and not self._looking:
            self._looked_at[pipeline.id], self._without[pipeline.id] = key, {}
            if path is not None and len(path.nodes) > 1:
                self._looking = True
                self._coordinator.spawn(self._look(pipeline, path))
        return self._without.get(pipeline.id, {})

    async def _look(self, pipeline: RouteMachine, path: Path) -> None:
        """At the stages that take most of a step; there may be a hundred."""
        c = self._coordinator
        found = self._without[pipeline.id]
        slowest = sorted(zip(path.nodes, path.placement.stages, strict=True), key=lambda pair: -pair[1].seconds)
        try:
            for node, stage in slowest[:_LOOKED_AT]:
                with suppress(CapacityError):
                    placement = await asyncio.to_thread(pipeline.without(path, node, c.now()))
                    found[stage.node] = placement.tokens_per_second / path.placement.tokens_per_second
        finally:
            self._looking = False

    async def experts(self, pipeline: str) -> ExpertsView:
        return ExpertsView(measured(self._runner(pipeline).planning.use))

    async def events(self, after: int, limit: int, kinds: Sequence[EventKind], node: str) -> EventPage:
        return self._coordinator.recorder.events.page(after, limit, kinds, node)

    async def history(self) -> History:
        recorder = self._coordinator.recorder
        return recorder.day.history(recorder.at)

    async def requests(self, owner: str | None) -> list[RequestView]:
        return self._coordinator.recorder.timelines.requests(owner)

    async def timeline(self, answer: str, owner: str | None, after: int) -> Timeline | None:
        return self._coordinator.recorder.timelines.timeline(answer, owner, after)

    async def preview(self, node: str, action: NodeAction) -> PlanView:
        c = self._coordinator
        number = c.numbered(node)
        if number is None:
            return PlanView(why=f"there is no node '{node}'")
        pipelines = [runner.pipeline for runner in c.runners.values()]
        pipeline = next((p for p in pipelines if p.has_part(number)), pipelines[0] if pipelines else None)
        if pipeline is None or pipeline.serving is None:
            return PlanView(why="the model is not being served now")
        serving = pipeline.serving
        placement = serving.placement
        try:
            if number in serving.members:
                placement = await asyncio.to_thread(self._planned(pipeline, serving, number, action))
        except CapacityError as error:
            return PlanView(why=str(error))
        return PlanView(
            [StageView(stage.node, stage.first, stage.end, predicted=stage.seconds) for stage in placement.stages],
            placement.tokens_per_second,
            serving.placement.tokens_per_second,
            _moved(serving.placement, placement),
        )

    def _planned(self, pipeline: RouteMachine, serving: Path, node: int, action: NodeAction) -> Callable[[], Placement]:
        """Raises CapacityError."""
        now = self._coordinator.now()
        match action.do:
            case "cap":
                return pipeline.capped(serving, node, action.memory, now)
            case "rename":
                return lambda: serving.placement
            case _:
                return pipeline.without(serving, node, now, beside=action.do == "drain")

    async def act(self, node: str, action: NodeAction) -> ActionResult:
        c = self._coordinator
        match action.do:
            case "rename":
                answer = c.rename(node, action.name)
            case "cap":
                answer = c.cap(node, action.memory)
            case _:
                answer = c.dismiss(DismissRequest(name=node, drain=action.do == "drain"))
        return ActionResult(answer.done, answer.message)

    async def invite(self) -> Invitation:
        return Invitation("", "") if self.invitation is None else self.invitation()

    def refused(self, words: str) -> None:
        """A machine was not let in, and never came to be a node."""
        self._coordinator.recorder.events.add(EventKind.REFUSED, words)

    async def models(self) -> ModelsView:
        memory = sum(member.profile.memory for member in self._coordinator.cluster.members.values())
        view = await asyncio.to_thread(self._pulls.view, frozenset(self._models), memory)
        loaded = [_loaded(engine) for engine in self._models.values()]
        view = msgspec.structs.replace(view, loaded=loaded, upstreams=self._upstreams())
        if self.keeper is None:
            return view
        return msgspec.structs.replace(
            view,
            aliases=dict(self.keeper.aliases),
            loading=self.keeper.loading,
            failed=dict(self.keeper.failed),
            known=[*self.keeper.known.values()],
        )

    async def load(self, model: str, replicas: int) -> ActionResult:
        if self.keeper is None:
            return ActionResult(False, _FIXED)
        count, bounds = self.keeper.bounded(replicas)
        note = f"; {bounds}" if bounds else ""
        try:
            return ActionResult(True, f"{self.keeper.begin(model, count)} is being loaded{note}")
        except ShoalError as error:
            return ActionResult(False, f"{error}{note}")

    async def unload(self, model: str) -> ActionResult:
        if self.keeper is None:
            return ActionResult(False, _FIXED)
        try:
            await self.keeper.unload(model, f"the model '{model}' was unloaded")
        except ShoalError as error:
            return ActionResult(False, str(error))
        return ActionResult(True, f"{model} is unloaded")

    async def alias(self, alias: str, target: str) -> ActionResult:
        if self.keeper is None:
            return ActionResult(False, _FIXED)
        try:
            return ActionResult(True, self.keeper.alias(alias, target))
        except ShoalError as error:
            return ActionResult(False, str(error))

    async def fleet_plan(self) -> FleetPlan:
        return FleetPlan(self._coordinator.recorder.at, (), on=False) if self.fleet is None else self.fleet()

    async def pull(self, model: str) -> ActionResult:
        self._loop = asyncio.get_running_loop()
        return await asyncio.to_thread(self._pulls.begin, model)

    def _pulled(self, line: str) -> None:
        """Called in another thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._coordinator.recorder.events.add, EventKind.FETCHED, line)


def _loaded(engine: ModelEngine) -> LoadedModel:
    return LoadedModel(
        name=engine.name,
        reference=engine.model.reference,
        state=engine.state,
        short=engine.short,
        replicas=len(engine.copies.kept),
        serving=sum(runner.serving for runner in engine.copies),
        family=engine.facts.family,
        quantization=engine.facts.quantization,
        context=engine.served.context,
        parameters=engine.facts.parameters,
        can=engine.can,
        precision=str(engine.offer.engine.precision),
        priority=engine.offer.priority,
        nodes=sorted(engine.pinned),
        absent=engine.awaited,
    )


def _requests(runner: PipelineRunner) -> RequestsView:
    slots = runner.model.engine.slots
    if runner.driver is None:
        return RequestsView(slots=slots)
    s = runner.driver.scheduler
    return RequestsView(s.running, s.waiting, slots, s.pool.used, s.pool.size)


def _pipeline_view(runner: PipelineRunner) -> PipelineView:
    pipeline, members = runner.pipeline, runner.pipeline.members
    return PipelineView(
        name=str(pipeline.id),
        model=pipeline.id.model,
        replica=pipeline.id.replica,
        state=pipeline.state,
        reason=pipeline.moving or pipeline.progress,
        requests=_requests(runner),
        measured=runner.record.tokens_per_second,
        nodes=[members[node].name for node in (*pipeline.route, *pipeline.workers) if node in members],
    )


def _moved(old: Placement, new: Placement) -> dict[str, int]:
    """By node, how many layers it would load that it does not run now."""
    runs = {stage.node: range(stage.first, stage.end) for stage in old.stages}
    loads = {
        stage.node: sum(layer not in runs.get(stage.node, range(0)) for layer in range(stage.first, stage.end)) for stage in new.stages
    }
    return {node: count for node, count in loads.items() if count}
