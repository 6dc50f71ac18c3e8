"""Loads of models for the autoscaler, and a fleet that does at once what is planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from shoal.config import ScalingSettings
from shoal.observed.fleet_plan import FleetPlan, ModelPlan, StartReplica, StopReplica
from shoal.serving.scaling.autoscaler import Autoscaler
from shoal.serving.scaling.load import ModelLoad, ReplicaLoad, ReplicaPhase
from shoal.serving.scaling.room import RoomCheck, places_for

SLOTS = 8


def targets(**given: Any) -> ScalingSettings:
    """Settings for tests: 0 to 8 replicas, unless it is said otherwise."""
    return ScalingSettings(**({"replicas_min": 1, "replicas_max": 8, "scale_idle": 60.0} | given))


def replicas(serving: int, loading: int = 0) -> tuple[ReplicaLoad, ...]:
    states = [ReplicaPhase.SERVING] * serving + [ReplicaPhase.LOADING] * loading
    return tuple(ReplicaLoad(i + 1, state, SLOTS) for i, state in enumerate(states))


def busy(model: str, replicas: tuple[ReplicaLoad, ...], work: float, priority: int = 0) -> ModelLoad:
    """A load that keeps so many replicas' slots busy, or those that serve, and lets the rest wait."""
    serving = sum(replica.state is ReplicaPhase.SERVING for replica in replicas)
    waiting = int(max(work - serving, 0) * SLOTS)
    return ModelLoad(
        model,
        replicas,
        priority,
        waiting=waiting,
        utilisation=min(work / serving, 1.0) if serving else 0.0,
        requests_per_second=work * SLOTS / 10,
        slot_seconds=10.0,
        idle=0.0 if work else 1e6,
        new_slots=SLOTS,
    )


class InstantFleet:
    """Replicas serve as soon as they are planned, and are gone as soon as they are not. seconds: between two looks."""

    def __init__(self, scaler: Autoscaler, models: dict[str, int], seconds: float = 5.0, room: int = 1000) -> None:
        """models: priority by name; each begins with one replica."""
        self.scaler, self.priorities, self.seconds, self.room = scaler, models, seconds, room
        self.replicas = {model: replicas(1) for model in models}
        self.now = 0.0
        self.history: list[tuple[float, dict[str, int]]] = [(0.0, dict.fromkeys(models, 1))]

    def counts(self) -> dict[str, int]:
        return {model: len(held) for model, held in self.replicas.items()}

    def free(self) -> RoomCheck:
        return places_for(self.room - sum(self.counts().values()))

    def step(self, work: dict[str, float]) -> FleetPlan:
        """work: by model, in replicas' slots."""
        self.now += self.seconds
        self.scaler.observe(self.now, [busy(m, held, work[m], self.priorities[m]) for m, held in self.replicas.items()])
        plan = self.scaler.plan(self.now, self.free())
        self.scaler.began(self.now, plan)
        for told in plan.models:
            self._carry_out(told)
        self.history.append((self.now, self.counts()))
        return plan

    def _carry_out(self, told: ModelPlan) -> None:
        held = {replica.number: replica for replica in self.replicas[told.model]}
        for action in told.actions:
            if isinstance(action, StartReplica):
                assert action.replica not in held
                held[action.replica] = ReplicaLoad(action.replica, ReplicaPhase.SERVING, SLOTS)
            elif isinstance(action, StopReplica):
                del held[action.replica]
        self.replicas[told.model] = tuple(held.values())

    def changes(self, model: str) -> list[tuple[float, int]]:
        """When the number of replicas changed, and by how many."""
        return [(at, after[model] - before[model]) for (_, before), (at, after) in pairwise(self.history) if after[model] != before[model]]


def only(plan: FleetPlan) -> ModelPlan:
    (told,) = plan.models
    return told


def with_load(load: ModelLoad, **changes: Any) -> ModelLoad:
    return replace(load, **changes)


def planned(scaler: Autoscaler, loads: Sequence[ModelLoad], room: RoomCheck, now: float = 1000.0) -> FleetPlan:
    """After the same loads for as long as any window."""
    for at in range(0, 1000, 10):
        scaler.observe(now - 1000 + at, loads)
    scaler.observe(now, loads)
    return scaler.plan(now, room)
