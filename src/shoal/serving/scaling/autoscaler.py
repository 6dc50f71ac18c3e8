"""What a fleet should change about its replicas.

`observe` takes the loads, `plan` says what to do about them and why, and changes nothing, so that it may be asked for a preview. `began`
says that a plan is being carried out: from then on the cooldowns count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shoal.config import MoreNodes, ScalingSettings
from shoal.observed.fleet_plan import AskForNodes, FleetPlan, LoadSignal, ModelPlan, PlannedAction, ScalingHold, StartReplica, StopReplica
from shoal.pipeline_id import PipelineId
from shoal.serving.scaling.demand import ReplicaDemand, demanded
from shoal.serving.scaling.expected_traffic import ExpectedTraffic
from shoal.serving.scaling.load import ModelLoad, ReplicaPhase
from shoal.serving.scaling.room import ReplicaPlace, RoomCheck
from shoal.serving.scaling.shares import Claim, Grant, first_to_go, shared
from shoal.serving.scaling.steadiness import Aim, Steadiness
from shoal.sizes import human_bytes


@dataclass
class _Model:
    load: ModelLoad
    demand: ReplicaDemand
    steadiness: Steadiness
    forecast: str = ""


@dataclass
class Autoscaler:
    """settings: of every model that has none of its own."""

    settings: ScalingSettings
    own: Mapping[str, ScalingSettings] = field(default_factory=dict[str, ScalingSettings])
    _models: dict[str, _Model] = field(default_factory=dict[str, _Model])

    def settings_for(self, model: str) -> ScalingSettings:
        return self.own.get(model, self.settings)

    def observe(self, now: float, loads: Sequence[ModelLoad], expected: Mapping[str, ExpectedTraffic] | None = None) -> None:
        """Every few seconds, with every model. now: on any clock that only goes forward, the forecasts' own."""
        known, self._models = self._models, {}
        for load in loads:
            settings = self.settings_for(load.model)
            told = (expected or {}).get(load.model) if settings.forecast else None
            demand = demanded(now, load, settings, told)
            steadiness = known[load.model].steadiness if load.model in known else Steadiness()
            steadiness.saw(now, demand.replicas, settings)
            self._models[load.model] = _Model(load, demand, steadiness, _forecast_words(told, settings))

    def began(self, now: float, plan: FleetPlan) -> None:
        """A plan's actions are being carried out: the loads that are observed next show them."""
        for told in plan.models:
            if (known := self._models.get(told.model)) is None:
                continue
            started = any(isinstance(action, StartReplica) for action in told.actions)
            if started or any(isinstance(action, StopReplica) for action in told.actions):
                known.steadiness.changed(now, added=started)

    def changed(self, now: float, model: str, *, added: bool) -> None:
        """Somebody else gave a model more or fewer replicas: the cooldowns count from then on."""
        if (known := self._models.get(model)) is not None:
            known.steadiness.changed(now, added=added)

    def plan(self, now: float, room: RoomCheck) -> FleetPlan:
        """For the loads observed last. room: on the nodes that are there."""
        aims = {name: model.steadiness.aim(now, model.load, self.settings_for(name)) for name, model in self._models.items()}
        going = [
            PipelineId(name, r.number) for name, m in self._models.items() for r in m.load.replicas if r.state is ReplicaPhase.STOPPING
        ]
        for name, model in self._models.items():
            leaving = first_to_go(model.load, model.load.kept - aims[name].replicas) if aims[name].replicas < model.load.kept else []
            going += [PipelineId(name, replica.number) for replica in leaving]
        grants = shared([self._claim(now, name, aims[name]) for name in aims], room, going, self.settings.scale_tolerance)
        return FleetPlan(now, tuple(self._told(name, aims[name], grants[name]) for name in sorted(aims)))

    def _claim(self, now: float, name: str, aim: Aim) -> Claim:
        model, settings = self._models[name], self.settings_for(name)
        count, steadiness = model.load.kept, model.steadiness
        needs = steadiness.least(now, settings.scale_up_after) if count else model.demand.replicas
        burden = steadiness.greatest(now, settings.scale_down_after)
        left, more = min(count, aim.replicas), max(aim.replicas - count, 0)
        return Claim(model.load, left, more, settings.replicas_min, needs, burden, steadiness.may_remove(now, settings) == 0)

    def _told(self, name: str, aim: Aim, grant: Grant) -> ModelPlan:
        model, settings = self._models[name], self.settings_for(name)
        load = model.load
        numbers = load.free_numbers()
        actions: list[PlannedAction] = [StartReplica(number, place.nodes) for number, place in zip(numbers, grant.places, strict=False)]
        for replica in first_to_go(load, max(load.kept - aim.replicas, 0)):
            actions.append(StopReplica(replica.number, f"has least to finish: {replica.running} of {replica.slots} slots are taken"))
        actions += [StopReplica(replica.number, f"its room is for {taker}") for replica, taker in grant.given]
        if grant.lacking and load.nodes_per_replica and settings.more_nodes is not MoreNodes.NONE:
            more = len(grant.lacking)
            actions.append(AskForNodes(more * load.nodes_per_replica, more, settings.more_nodes.value))
        stopped = sum(isinstance(action, StopReplica) for action in actions)
        return ModelPlan(
            name,
            load.serving,
            load.coming,
            aim.wanted,
            load.kept + len(grant.places) - stopped,
            _reason(load, aim, model.demand, settings),
            model.demand.signals,
            tuple(actions),
            (*aim.holds, *_room_holds(grant)),
            model.forecast,
        )


def _room_holds(grant: Grant) -> list[ScalingHold]:
    holds: list[ScalingHold] = []
    if grant.waits:
        holds.append(ScalingHold("room", f"{_replicas(grant.waits)} will start when others have stopped"))
    if grant.lacking:
        missing = _least_missing(grant.lacking)
        more = f": {human_bytes(missing)} missing for the next" if missing else ""
        holds.append(ScalingHold("room", f"no room for {_replicas(len(grant.lacking))} on the nodes that are there{more}", missing=missing))
    return holds


def _least_missing(places: Sequence[ReplicaPlace]) -> int:
    return min((place.missing for place in places if place.missing), default=0)


def _reason(load: ModelLoad, aim: Aim, demand: ReplicaDemand, settings: ScalingSettings) -> str:
    cause = demand.cause
    said = "no load" if cause is None else signal_words(cause)
    if load.kept < settings.replicas_min:
        return f"there are {_replicas(load.kept)}, --replicas-min is {settings.replicas_min}"
    if load.kept > settings.replicas_max:
        return f"there are {_replicas(load.kept)}, --replicas-max is {settings.replicas_max}"
    if aim.wanted > load.kept:
        return f"{said}: the work of {demand.replicas:.1f} replicas, and there are {load.kept}"
    if aim.wanted < load.kept:
        if not aim.wanted:
            return f"nobody has asked for {load.idle:.0f} s"
        return f"{said}: the work of {demand.replicas:.1f} replicas at most, and there are {load.kept}"
    if not load.kept:
        return "nobody asks for it"
    if any(hold.kind == "maximum" for hold in aim.holds):
        return f"{said}: the work of {demand.replicas:.1f} replicas, and there are {load.kept}"
    return f"{said}: {_replicas(load.kept)} will do"


def signal_words(signal: LoadSignal) -> str:
    """'12.0 requests wait per replica, target 4'."""
    figure, target = signal.figure, signal.target
    match signal.name:
        case "queue":
            return f"{figure:.1f} requests wait per replica, target {target:g}"
        case "first token":
            return f"{figure:.2f} s to the first token (p95), target {target:g} s"
        case "slots":
            return f"{figure:.0%} of the slots are taken, target {target:.0%}"
        case "tokens":
            return f"{figure:.0%} of the tokens per second that the replicas can do, target {target:.0%}"
        case "arrivals":
            return f"{figure:.2f} requests per second arrive, one replica serves {target:.2f}"
        case "forecast":
            return f"{figure:.2f} requests per second expected, one replica serves {target:.2f}"


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def _forecast_words(expected: ExpectedTraffic | None, settings: ScalingSettings) -> str:
    if not settings.forecast:
        return ""
    if expected is None:
        return "there is no forecast yet"
    errors = f"it missed by {expected.error:.2f} requests per second on the last days, a naive one by {expected.naive_error:.2f}"
    return f"used: {errors}" if expected.trusted else f"not used: {errors}"
