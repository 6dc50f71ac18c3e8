"""A cluster's operator whose every answer is the same small one, for the gateway; it remembers what it was asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shoal.errors import UnknownObject
from shoal.observed.cluster import (
    ActionResult,
    ClusterView,
    ExpertsView,
    Invitation,
    MachineView,
    ModelView,
    NodeAction,
    PipelineView,
    PlanView,
    RequestsView,
    StageView,
)
from shoal.observed.event import EventKind, EventPage
from shoal.observed.fleet_plan import AskForNodes, FleetPlan, LoadSignal, ModelPlan, ScalingHold, StartReplica, StopReplica
from shoal.observed.history import History
from shoal.observed.models import ModelHere, ModelsView, PullView
from shoal.observed.requests import HopSpan, RecoverySpan, RequestView, StepSpan, Timeline
from shoal.telemetry.event_ring import EventRing

HOSTILE = '<img src=x onerror=alert(1)>\x1b[2J"]}'
"""A name that somebody may choose."""


def machine(name: str, **more: Any) -> MachineView:
    plain: dict[str, Any] = {
        "name": name, "number": 1, "role": "layers", "state": "serving", "words": "serving", "address": "10.0.0.2:7500",
        "machine": "x86_64 avx512", "threads": 4, "silence": 0.25, "first_layer": 0, "end_layer": 15, "memory": 8 << 30,
    }  # fmt: skip
    return MachineView(**{**plain, **more})


def view(*machines: MachineView, **more: Any) -> ClusterView:
    plain: dict[str, Any] = {
        "cluster": "reef", "version": "1", "at": 100.0, "started": 50.0, "model": ModelView("toy", "toy", 30, 2048, 1 << 20), "state": "serving",
        "reason": "", "epoch": 3, "machines": [*machines], "stages": [StageView("a", 0, 15), StageView("b", 15, 30)], "requests": RequestsView(1, 2, 8, 4, 64),
        "pipeline": "toy/1", "pipelines": [PipelineView("toy/1", "toy", 1, "serving", "", RequestsView(1, 2, 8, 4, 64), 12.5, ["a", "b"])],
    }  # fmt: skip
    return ClusterView(**{**plain, **more})


class FixedOperator:
    def __init__(self) -> None:
        self.ring = EventRing(lambda: 123.0)
        self.view = view(machine("a"), machine(HOSTILE, number=2))
        self.asked: list[tuple[Any, ...]] = []
        """Of actions, previews and pulls."""
        self.results: dict[str, ActionResult] = {}
        """By what was asked about; otherwise it is done."""
        self.invitation = Invitation("10.0.0.1:7420", "shoal join 10.0.0.1:7420 --code 1-2-3", "1-2-3", 4000.0)
        self.seen = [RequestView("chatcmpl-1", 10.0, "", "ended", 3, 0, 2), RequestView("chatcmpl-2", 11.0, "someone", "running")]
        step = StepSpan(4, 3, 10.5, 2, 1, 1, 0.1, 0.2, 0.3, [HopSpan(0.1, 0.2, 0.3, 0.4, 0.5, 0.6)], 0.7, 0.8)
        self.steps = [step]
        self.recoveries = [RecoverySpan(12.0, 13.0, "b left", "b", 1.5, {"load": 1.0}, 64, 2)]

    async def cluster(self, pipeline: str) -> ClusterView:
        if pipeline not in ("", self.view.pipeline):
            raise UnknownObject("pipeline", pipeline)
        return self.view

    async def experts(self, pipeline: str) -> ExpertsView:
        await self.cluster(pipeline)
        return ExpertsView({0: [1, 2, 3]})

    async def events(self, after: int, limit: int, kinds: Sequence[EventKind], node: str) -> EventPage:
        return self.ring.page(after, limit, kinds, node)

    async def fleet_plan(self) -> FleetPlan:
        signal = LoadSignal("queue", 6.0, 4.0, 1.5)
        actions = (StartReplica(2, ("b",)), StopReplica(3, HOSTILE), AskForNodes(1, 1, "webhook"))
        hold = ScalingHold("room", "no room", missing=1 << 20)
        return FleetPlan(100.0, (ModelPlan("toy", 1, 0, 2, 2, "busy", (signal,), actions, (hold,)),))

    async def history(self) -> History:
        return History([60.0, 120.0], [1.5, 0.0], [0.1, None], [0.2, None], [3, 0], [0.5, 0.0], [1 << 30, 1 << 30], [2, 1])

    async def requests(self, owner: str | None) -> list[RequestView]:
        return [one for one in self.seen if owner is None or one.key == owner]

    async def timeline(self, answer: str, owner: str | None, after: int) -> Timeline | None:
        found = next((one for one in await self.requests(owner) if one.id == answer), None)
        return None if found is None else Timeline(found, {3: ["a"]}, self.steps[after:], self.recoveries, len(self.steps))

    async def preview(self, node: str, action: NodeAction) -> PlanView:
        self.asked.append(("preview", node, action.do, action.memory))
        return PlanView([StageView("a", 0, 30)], 50.0, 80.0, {"a": 15})

    async def act(self, node: str, action: NodeAction) -> ActionResult:
        self.asked.append((action.do, node))
        return self.results.get(node, ActionResult(True, f"{node}: done"))

    async def invite(self) -> Invitation:
        return self.invitation

    async def models(self) -> ModelsView:
        return ModelsView([ModelHere("toy", "toy", 1 << 20, True, True, True)], [PullView("other", 1.0, 5, 10)], 16 << 30)

    async def load(self, model: str, replicas: int) -> ActionResult:
        return self._done("load", model, replicas)

    async def unload(self, model: str) -> ActionResult:
        return self._done("unload", model)

    async def alias(self, alias: str, target: str) -> ActionResult:
        return self._done("alias", alias, target)

    def _done(self, what: str, name: str, *more: Any) -> ActionResult:
        self.asked.append((what, name, *more))
        return self.results.get(name, ActionResult(True, f"{name}: done"))

    async def pull(self, model: str) -> ActionResult:
        self.asked.append(("pull", model))
        return self.results.get(model, ActionResult(True, f"{model} is being fetched"))
