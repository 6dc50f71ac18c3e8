"""What a fleet would change about its replicas, and why."""

from __future__ import annotations

from typing import Literal

import msgspec

SignalName = Literal["queue", "first token", "slots", "tokens", "arrivals", "forecast"]


class LoadSignal(msgspec.Struct, frozen=True):
    """What is measured or expected of a model, beside its target.

    queue:       requests that wait, per replica that serves
    first token: 95th percentile of the seconds to it
    slots:       share of the slots that are taken
    tokens:      tokens per second, as a share of what the replicas can do
    arrivals:    requests per second; the target is what one replica serves at its target of slots
    forecast:    the same, expected until a replica could be loaded

    replicas: that would bring the figure to its target; a fraction
    """

    name: SignalName
    figure: float
    target: float
    replicas: float


class StartReplica(msgspec.Struct, frozen=True, tag="start"):
    """On nodes that are there."""

    replica: int
    nodes: tuple[str, ...]


class StopReplica(msgspec.Struct, frozen=True, tag="stop"):
    """It finishes what it has begun. why: why it and not another one, or what its room is for."""

    replica: int
    why: str


class AskForNodes(msgspec.Struct, frozen=True, tag="ask"):
    """nodes: more than there are, for `replicas` that fit on none. whom: 'webhook', 'ray' or 'kubernetes'."""

    nodes: int
    replicas: int
    whom: str


PlannedAction = StartReplica | StopReplica | AskForNodes


class ScalingHold(msgspec.Struct, frozen=True):
    """What keeps a model from the replicas that it should have.

    kind:    'cooldown', 'settling' (the load has to last), 'room', 'maximum' or 'minimum'
    seconds: until it is over; 0: not known
    missing: bytes of memory
    """

    kind: Literal["cooldown", "settling", "room", "maximum", "minimum"]
    words: str
    seconds: float = 0.0
    missing: int = 0


class ModelPlan(msgspec.Struct, frozen=True):
    """wanted: replicas that there should be. planned: that there will be after the actions, on nodes that are there. forecast: why there is
    none or how good it is; '': nobody asked for one."""

    model: str
    serving: int
    loading: int
    wanted: int
    planned: int
    reason: str
    signals: tuple[LoadSignal, ...] = ()
    actions: tuple[PlannedAction, ...] = ()
    holds: tuple[ScalingHold, ...] = ()
    forecast: str = ""


class FleetPlan(msgspec.Struct, frozen=True):
    """on: whether anybody carries it out."""

    at: float
    models: tuple[ModelPlan, ...]
    on: bool = True
