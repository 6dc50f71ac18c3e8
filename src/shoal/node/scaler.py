"""Gives the models of a head more and fewer copies, as the autoscaler plans it: looks at their loads, asks, and carries out."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Collection, Sequence

import msgspec
import structlog

from shoal.config import HeadSettings
from shoal.errors import ShoalError
from shoal.membership.replica_room import CopyTerms, ReplicaRoom
from shoal.node.forecaster import Forecaster
from shoal.node.head import Head
from shoal.node.load_watch import LoadWatch
from shoal.node.model_engine import ModelEngine, ModelOffer
from shoal.node.model_keeper import ModelKeeper
from shoal.node.model_load import inside, load_of, running
from shoal.node.node_source import NodeSource
from shoal.observed.event import EventKind
from shoal.observed.fleet_plan import AskForNodes, FleetPlan, ModelPlan, StartReplica, StopReplica
from shoal.pipeline_id import PipelineId
from shoal.serving.node_wish import NodeWish
from shoal.serving.scaling.autoscaler import Autoscaler
from shoal.serving.scaling.load import ModelLoad, ReplicaLoad, ReplicaPhase
from shoal.serving.scaling.room import ReplicaPlace
from shoal.telemetry.metrics import ScalingMetrics

log = structlog.get_logger()

_LOOK = 2.0  # seconds between two looks
_ROOMLESS = 10.0  # seconds without room after which a copy counts as not there
_AGAIN = 5.0  # seconds before a part that failed unexpectedly is started again
_LOADING = 60.0  # seconds that a copy is thought to load before one has


@dataclasses.dataclass(frozen=True)
class _Lack:
    """What a model lacks, as it was told. words: of the room; ''."""

    nodes: int = 0
    replicas: int = 0
    words: str = ""


class Scaler:
    """Of one head. Without `ScalingSettings.on` it only says what it would do."""

    def __init__(self, head: Head, keeper: ModelKeeper, settings: HeadSettings, source: NodeSource | None = None) -> None:
        """source: whom to ask for nodes; None: nobody."""
        self._head, self._keeper, self._settings, self._source = head, keeper, settings, source
        self._autoscaler = Autoscaler(settings.scaling)
        self.forecaster: Forecaster | None = None
        self._watches: dict[str, LoadWatch] = {}
        self._terms: dict[str, CopyTerms] = {}
        self._offers: dict[str, ModelOffer] = {}
        """Both of models that were served, also of those that rest."""
        self._kept: dict[str, set[int]] = {}
        """Numbers of the copies that each model had after the last look."""
        self._observed: set[str] | None = None
        """Models that had copies when their loads were looked at last; None: that was never."""
        self._loading: dict[PipelineId, float] = {}
        """Since when copies load that have not served yet."""
        self._served: set[PipelineId] = set()
        self._load_seconds: dict[str, float] = {}
        self._fastest: dict[PipelineId, float] = {}
        """Tokens per second that copies have reached."""
        self._lost: dict[PipelineId, float] = {}
        """Since when copies find no room."""
        self._lacks: dict[str, _Lack] = {}
        self._trouble = ""
        self._metrics = ScalingMetrics()
        if settings.scaling.on:
            head.metrics.scaling = self._metrics

    @property
    def on(self) -> bool:
        return self._settings.scaling.on

    @property
    def _now(self) -> float:
        """Seconds since 1970, by a clock that only goes forward."""
        return self._head.coordinator.recorder.at

    def counts(self) -> dict[str, int]:
        """Requests of each model since it was first seen."""
        return {model: watch.arrived for model, watch in self._watches.items()}

    # What would be done

    def plan(self) -> FleetPlan:
        """For the loads of the last look, unless models have come or gone since. Changes nothing."""
        if not self._settings.scaling.on:
            return self._preview()
        if self._observed != {*self._head.engines}:
            self._observe()
        return self._autoscaler.plan(self._now, self._room)

    def _preview(self) -> FleetPlan:
        """Where nothing is scaled: every model keeps the copies that it has, and the plan says what the load asks for."""
        counts = {name: max(len(engine.copies.kept), 1) for name, engine in self._head.engines.items()}
        own = {name: dataclasses.replace(self._settings.scaling, replicas_min=n, replicas_max=n) for name, n in counts.items()}
        autoscaler = Autoscaler(self._settings.scaling, own)
        room = self._all_room()
        autoscaler.observe(self._now, [self._load(engine, LoadWatch(), room) for engine in self._head.engines.values()])
        return msgspec.structs.replace(autoscaler.plan(self._now, self._room), on=False)

    # Looks

    async def run(self) -> None:
        """Looks and acts until it is cancelled."""
        parts: list[Callable[[], Awaitable[None]]] = [self._look_on]
        parts += [self._source.run] if self._source is not None else []
        if self.forecaster is not None:
            parts += [self.forecaster.run, *([self.forecaster.predict] if self._settings.scaling.forecast else [])]
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(self._kept_running(part))

    async def _kept_running(self, part: Callable[[], Awaitable[None]]) -> None:
        """Models must be scaled whatever goes wrong once."""
        said = ""
        while True:
            try:
                await part()
            except Exception as error:
                if (now := repr(error)) != said:
                    said = now
                    log.error("the autoscaler failed unexpectedly; it goes on", exc_info=error)
                    self._event(EventKind.FAULT, f"the autoscaler failed unexpectedly: {now}")
            await asyncio.sleep(_AGAIN)

    async def _look_on(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(_LOOK)

    async def look(self) -> None:
        """Once: observes, plans and acts."""
        self._observe()
        plan = self._autoscaler.plan(self._now, self._room)
        self._autoscaler.began(self._now, plan)
        for told in plan.models:
            await self._carry_out(told)
        self._metrics.wanted.only({(told.model,): told.wanted for told in plan.models})
        self._take_back({told.model for told in plan.models})
        self._tell_trouble()
        self._kept = self._copies()

    def _copies(self) -> dict[str, set[int]]:
        return {name: {*engine.copies.kept} for name, engine in self._head.engines.items()}

    def _observe(self) -> None:
        now, engines, room = self._now, self._head.engines, self._all_room()
        loads = [self._watched(engine, room) for engine in engines.values()]
        loads += [self._resting(name) for name in self._keeper.resting]
        self._autoscaler.observe(now, loads, self.forecaster.expected if self.forecaster is not None else None)
        for name, before in self._kept.items():
            if name in engines and (kept := {*engines[name].copies.kept}) != before:
                self._autoscaler.changed(now, name, added=len(kept) > len(before))
        self._kept, self._observed = self._copies(), {*engines}
        self._forget()
        self._metrics.replicas.only({(load.model, phase.value): load.count(phase) for load in loads for phase in ReplicaPhase})

    def _watched(self, engine: ModelEngine, room: ReplicaRoom) -> ModelLoad:
        """A model's load, after a look at its copies."""
        now, name = self._head.coordinator.now(), engine.name
        watch = engine.watch = self._watches.setdefault(name, engine.watch or LoadWatch())
        watch.look(now, running(engine), inside(engine))
        for number, runner in engine.copies.runners.items():
            id, pipeline = PipelineId(name, number), runner.pipeline
            self._fastest[id] = max(self._fastest.get(id, 0.0), runner.record.tokens_per_second)
            gathering = not pipeline.placed and 0 < len(pipeline.members) < pipeline.min_nodes
            if runner.lost and not gathering:
                self._lost.setdefault(id, now)
            else:
                self._lost.pop(id, None)
            if runner.serving and id not in self._served:
                self._served.add(id)
                if (began := self._loading.pop(id, None)) is not None:
                    self._load_seconds[name] = now - began
            elif id not in self._served:
                self._loading.setdefault(id, now)
        return self._load(engine, watch, room)

    def _load(self, engine: ModelEngine, watch: LoadWatch, room: ReplicaRoom) -> ModelLoad:
        name, now = engine.name, self._head.coordinator.now()
        self._terms[name] = dataclasses.replace(room.models[name], dealt={})
        self._offers[name] = engine.offer
        roomless = frozenset(number for number in engine.copies.runners if self._is_roomless(PipelineId(name, number)))
        return load_of(
            engine,
            watch,
            now,
            roomless=roomless,
            fastest={id.replica: speed for id, speed in self._fastest.items() if id.model == name},
            waiting=self._keeper.waiting(name),
            load_seconds=self._load_seconds.get(name, _LOADING),
            nodes=room.nodes_needed(name),
        )

    def _is_roomless(self, id: PipelineId) -> bool:
        since = self._lost.get(id)
        return since is not None and self._head.coordinator.now() - since >= _ROOMLESS

    def _resting(self, name: str) -> ModelLoad:
        """Of a model without copies."""
        offer = self._offers.get(name)
        slots = offer.engine.slots if offer is not None else self._settings.engine.slots
        coming = (ReplicaLoad(1, ReplicaPhase.LOADING, slots),) if name in self._keeper.loading else ()
        watch = self._watches.get(name, LoadWatch())
        watch.look(self._head.coordinator.now(), 0, 0)
        return ModelLoad(
            name,
            coming,
            priority=offer.priority if offer is not None else 0,
            waiting=self._keeper.waiting(name),
            requests_per_second=watch.per_second,
            slot_seconds=watch.slot_seconds,
            idle=self._settings.scaling.scale_idle,
            load_seconds=self._load_seconds.get(name, _LOADING),
            new_slots=slots,
        )

    def _all_room(self) -> ReplicaRoom:
        coordinator = self._head.coordinator
        return coordinator.cluster.room(coordinator.now(), self._terms)

    def _room(self, models: Sequence[str], gone: Sequence[PipelineId]) -> list[ReplicaPlace]:
        if not models:
            return []
        roomless = [id for id in self._lost if self._is_roomless(id)]
        wait = set[str]() if gone else {id.model for id in roomless}  # the cluster knows better: it would have placed them
        found = self._all_room().more(models, [*gone, *roomless])
        return [ReplicaPlace(() if model in wait else one.nodes, one.missing) for model, one in zip(models, found, strict=True)]

    def _forget(self) -> None:
        """What was known of copies that are gone."""
        there = self._head.coordinator.runners
        for known in (self._loading, self._lost, self._fastest):
            for id in [id for id in known if id not in there]:
                del known[id]
        self._served &= there.keys()

    # Acts

    async def _carry_out(self, told: ModelPlan) -> None:
        engine = self._head.engines.get(told.model)
        for action in told.actions:
            match action:
                case StartReplica():
                    self._start(told, engine, action)
                case StopReplica():
                    await self._stop(told, engine, action)
                case AskForNodes():
                    pass
        self._ask(told)
        if engine is not None and not any(hold.kind == "room" for hold in told.holds):
            self._give_up_roomless(engine)

    def _give_up_roomless(self, engine: ModelEngine) -> None:
        """Copies that find no room, once the load does not ask for them any more."""
        for number in engine.copies.kept:
            id = PipelineId(engine.name, number)
            if self._is_roomless(id) and len(engine.copies.kept) > 1:
                engine.close_copy(number, f"{id} found no room, and is not wanted any more")
                self._event(EventKind.SCALED, f"{id} found no room, and is not wanted any more")

    def _start(self, told: ModelPlan, engine: ModelEngine | None, action: StartReplica) -> None:
        id, where = PipelineId(told.model, action.replica), f"{', '.join(action.nodes)}: {told.reason}"
        if engine is None:
            if told.model in self._keeper.loading:
                return
            try:
                self._keeper.wake(told.model)
            except ShoalError as error:
                self._event(EventKind.FAULT, f"{told.model} cannot be loaded again: {error}")
                return
        elif action.replica in engine.copies.runners:
            return  # it waited for room, and there is some now
        else:
            engine.open(action.replica)
        self._count(told.model, "start")
        self._event(EventKind.SCALED, f"{id} is added on {where}")

    async def _stop(self, told: ModelPlan, engine: ModelEngine | None, action: StopReplica) -> None:
        if engine is None or action.replica not in engine.copies.kept:
            return
        id = PipelineId(told.model, action.replica)
        if len(engine.copies.kept) > 1:
            engine.stop_copy(action.replica)
            self._event(EventKind.SCALED, f"{id} is to stop: {told.reason}; it {action.why}")
        elif engine.busy:
            return  # somebody has asked meanwhile
        else:
            await self._keeper.rest(told.model, told.reason)
        self._count(told.model, "stop")

    def _ask(self, told: ModelPlan) -> None:
        """Nodes for what fits nowhere, or none any more."""
        asked = next((action for action in told.actions if isinstance(action, AskForNodes)), AskForNodes(0, 0, ""))
        words = next((hold.words for hold in told.holds if hold.kind == "room"), "")
        lack, before = _Lack(asked.nodes, asked.replicas, words), self._lacks.get(told.model, _Lack())
        self._wish(NodeWish(told.model, asked.nodes, asked.replicas, told.reason))
        if lack == before:
            return
        self._lacks[told.model] = lack
        if asked.nodes and asked.nodes != before.nodes:
            self._count(told.model, "ask")
            nodes = "1 node is" if asked.nodes == 1 else f"{asked.nodes} nodes are"
            self._event(EventKind.SHORT, f"{told.model}: {nodes} asked for ({asked.whom}): {words}; {told.reason}")
        elif words:
            self._event(EventKind.SHORT, f"{told.model}: {words}; {told.reason}")
        else:
            self._event(EventKind.SCALED, f"{told.model} lacks no room any more: {told.reason}")

    def _wish(self, wish: NodeWish) -> None:
        self._metrics.nodes.set(wish.nodes, wish.model)
        if self._source is not None:
            self._source.wish(wish)

    def _take_back(self, models: Collection[str]) -> None:
        """What was wished for other models than these, which are gone."""
        for model in [model for model in self._lacks if model not in models]:
            del self._lacks[model]
            self._wish(NodeWish(model, 0, 0, "it is unloaded"))
            self._metrics.nodes.forget("model", model)

    def _tell_trouble(self) -> None:
        trouble = self._source.trouble if self._source is not None else ""
        if trouble != self._trouble:
            if trouble:
                self._event(EventKind.FAULT, f"nodes cannot be asked for: {trouble}")
            self._trouble = trouble

    def _count(self, model: str, action: str) -> None:
        self._metrics.actions.add(1, model, action)

    def _event(self, kind: EventKind, words: str) -> None:
        self._head.coordinator.recorder.events.add(kind, words)
