"""`fleet plan`: the replicas of each model of a running server, what would change, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import msgspec
from rich.console import Group
from rich.text import Text

from shoal.cli.asking import ChatOptions
from shoal.cli.loop import run
from shoal.cli.operator_client import OperatorClient
from shoal.cli.show import Rows, emit, out, plain
from shoal.observed.fleet_plan import AskForNodes, FleetPlan, LoadSignal, ModelPlan, PlannedAction, SignalName, StartReplica, StopReplica


async def _asked(asking: ChatOptions) -> FleetPlan:
    async with OperatorClient(asking) as client:
        return await client.fleet_plan()


def fleet_plan(asking: ChatOptions, as_json: bool) -> None:
    plan = run(_asked(asking))
    if as_json:
        emit(fleet_plan_values(plan))
    else:
        out.print(fleet_plan_shown(plan))


def fleet_plan_shown(plan: FleetPlan) -> Group:
    """For people."""
    if not plan.models:
        return Group("the fleet has no models")
    details = [line for told in plan.models for line in _details(told)]
    known = [name for name in get_args(SignalName) if any(signal.name == name for told in plan.models for signal in told.signals)]
    details += [] if plan.on else [Text("nothing is scaled here; --replicas-max, or --replicas-min 0, has the server do it")]
    return Group(Rows([_row(told, known) for told in plan.models]), *details)


def fleet_plan_values(plan: FleetPlan) -> dict[str, Any]:
    """For a script. Seconds, bytes and replicas are numbers."""
    return {
        "on": plan.on,
        "models": [
            {
                "model": told.model,
                "serving": told.serving,
                "loading": told.loading,
                "wanted": told.wanted,
                "planned": told.planned,
                "reason": told.reason,
                "signals": [
                    {"name": s.name, "figure": round(s.figure, 4), "target": round(s.target, 4), "replicas": round(s.replicas, 3)}
                    for s in told.signals
                ],
                "actions": [msgspec.to_builtins(action) for action in told.actions],
                "holds": [
                    {"kind": hold.kind, "words": hold.words, "seconds": round(hold.seconds, 3), "missing_bytes": hold.missing}
                    for hold in told.holds
                ],
                "forecast": told.forecast,
            }
            for told in plan.models
        ],
    }


def _row(told: ModelPlan, signals: Sequence[str]) -> dict[str, Any]:
    figures = {signal.name: _figure(signal) for signal in told.signals}
    return {
        "model": plain(told.model),
        "serving": told.serving,
        "loading": told.loading,
        "wanted": told.wanted,
        "planned": told.planned,
        **{name: figures.get(name, "-") for name in signals},
    }


def _figure(signal: LoadSignal) -> str:
    """'92% of 75%': what is, and the target."""
    match signal.name:
        case "slots" | "tokens":
            return f"{signal.figure:.0%} of {signal.target:.0%}"
        case "first token":
            return f"{signal.figure:.2f} of {signal.target:g} s"
        case "queue":
            return f"{signal.figure:.1f} of {signal.target:g}"
        case "arrivals" | "forecast":
            return f"{signal.figure:.2f} of {signal.target:.2f}/s"


def _details(told: ModelPlan) -> list[Text]:
    lines = [f"{told.model}: {told.reason}"]
    lines += [f"  would {_action(action)}" for action in told.actions] or ["  would change nothing"]
    lines += [f"  held: {hold.words}" for hold in told.holds]
    lines += [f"  forecast {told.forecast}"] if told.forecast else []
    return [Text(plain(line)) for line in lines]


def _action(action: PlannedAction) -> str:
    match action:
        case StartReplica():
            return f"start replica {action.replica} on {', '.join(action.nodes)}"
        case StopReplica():
            return f"stop replica {action.replica}: {action.why}"
        case AskForNodes():
            whom = {"webhook": "the webhook", "ray": "Ray", "kubernetes": "Kubernetes"}.get(action.whom, action.whom)
            return f"ask {whom} for {_counted(action.nodes, 'node')}, for {_counted(action.replicas, 'replica')}"


def _counted(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"{count} {what}s"
