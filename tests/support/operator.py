"""An operator without a cluster, for the gateway and the console: answers what it is given."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from time import time

import msgspec

from shoal.errors import UnknownObject
from shoal.observed.cluster import (
    ActionResult,
    Advice,
    ClusterView,
    ExpertsView,
    Invitation,
    MachineView,
    ModelView,
    NodeAction,
    PipelineView,
    PlanView,
    Progress,
    RequestsView,
    StageView,
)
from shoal.observed.event import ClusterEvent, EventKind, EventPage
from shoal.observed.fleet_plan import FleetPlan
from shoal.observed.history import SAMPLES, STEP, History
from shoal.observed.models import LoadedModel, ModelHere, ModelsView, PullView
from shoal.observed.requests import HopSpan, RecoverySpan, RequestView, StepSpan, Timeline

LAYERS = 48
MODEL = ModelView("qwen3-30b-a3b", "qwen/qwen3-30b-a3b:q4_k_m", LAYERS, 32768, 18_556_000_000, 128)


def machine(name: str, number: int, first: int, end: int, **more: object) -> MachineView:
    given: dict[str, object] = {
        "role": "layers",
        "state": "serving",
        "words": f"serves layers {first} to {end - 1}",
        "address": f"192.168.1.{20 + number}",
        "machine": "",
        "threads": 8,
        "silence": 0.2,
        "first_layer": first,
        "end_layer": end,
        "weights": (end - first) * 380_000_000,
        "memory": 12 << 30,
        "resident": (end - first) * 380_000_000 + (700 << 20),
        "runtime": "native",
        "bytes_per_second": 38e9,
        "flops": 1.2e12,
        "disk": 2.1e9,
        "round_trip": 0.00042,
        "link_bytes_per_second": 117e6,
        "busy": 0.31 + 0.1 * (number % 4),
    }
    return msgspec.convert({"name": name, "number": number, **given, **more}, MachineView)


def spread(names: Sequence[str], layers: int = LAYERS) -> list[tuple[str, int, int]]:
    """Each name with its share of the layers."""
    edges = [round(i * layers / len(names)) for i in range(len(names) + 1)]
    return [(name, edges[i], edges[i + 1]) for i, name in enumerate(names)]


def cluster(names: Sequence[str], **more: object) -> ClusterView:
    """One that serves, with a machine for each name."""
    parts = spread(names)
    shares = [(1.6 if i == 1 else 1.0) for i in range(len(parts))]
    total = sum(shares) * 1.12
    view = ClusterView(
        cluster="home",
        version="0.2.0",
        at=time(),
        started=time() - 7531,
        model=MODEL,
        state="serving",
        reason="",
        epoch=3,
        machines=[machine(name, i + 1, first, end) for i, (name, first, end) in enumerate(parts)],
        stages=[
            StageView(name, first, end, 0.0021, 0.0113 * share, 0.0009 if end == LAYERS else 0.0, share / total, 0.0108 * share, 0.00061)
            for (name, first, end), share in zip(parts, shares, strict=True)
        ],
        requests=RequestsView(3, 1, 8, 212, 1024),
        predicted=41.7,
        predicted_single=14.2,
        measured=38.9,
        last_hop=0.00058,
        advice=[Advice("bound", f"{names[1]} bounds the pipeline: 44 % of a step", names[1], 0.14)] if len(names) > 1 else [],
    )
    alone = PipelineView(f"{MODEL.name}/1", MODEL.name, 1, view.state, view.reason, view.requests, view.measured, [*names])
    return msgspec.structs.replace(view, **{"pipeline": alone.name, "pipelines": [alone], **more})


def steps(count: int, stages: int, at: float, rate: float, first: int = 0, seed: int = 0) -> list[StepSpan]:
    """At `rate` a second from `at` on, one after the other."""
    rng = random.Random(seed)
    took = 1 / rate
    made: list[StepSpan] = []
    for i in range(count):
        part = took * 0.86 / stages
        hops = [
            HopSpan(
                part * 0.08,
                part * 0.05,
                part * 0.03,
                part * (0.7 + 0.1 * rng.random()),
                part * 0.06 if s == stages - 1 else 0.0,
                part * 0.02,
            )
            for s in range(stages)
        ]
        made.append(
            StepSpan(first + i + 1, 1, at + i * took, 1, 1, 1, took * 0.02, took * 0.01, took * 0.01, hops, took * 0.04, took * 0.02)
        )
    return made


def history(now: float) -> History:
    at = [now // STEP * STEP - STEP * (SAMPLES - 1 - i) for i in range(SAMPLES)]
    wave = [0.5 + 0.5 * math.sin(i / 190) for i in range(SAMPLES)]
    rng = random.Random(1)
    return History(
        at=at,
        tokens_per_second=[38 * w + 3 * rng.random() for w in wave],
        first_p50=[0.4 + 0.5 * w if w > 0.1 else None for w in wave],
        first_p99=[1.1 + 2 * w + rng.random() if w > 0.1 else None for w in wave],
        queue=[int(5 * w * rng.random()) for w in wave],
        blocks=[0.6 * w for w in wave],
        memory=[int((18 + 2 * w) * 2**30) for w in wave],
        nodes=[3] * SAMPLES,
    )


class FakeOperator:
    """gateway.operator.Operator. What it is asked to do is kept in `asked`."""

    def __init__(self, view: ClusterView) -> None:
        self.view = view
        """Of the first pipeline; without pipelines: there is none."""
        self.others: list[ClusterView] = []
        """Of the other pipelines."""
        self.happened: list[ClusterEvent] = []
        self.timelines: dict[str, Timeline] = {}
        self.listed = ModelsView([], [], 0)
        self.experts_used = ExpertsView({})
        self.experts_of_others = ExpertsView({})
        self.day: History | None = None
        """None: one that is made up, up to now."""
        self.plan = PlanView()
        self.asked: list[tuple[object, ...]] = []
        self.previewed: list[tuple[str, NodeAction]] = []
        self.refusal = ""
        """Why it does nothing that it is asked to do."""
        self.invitation = Invitation("192.168.1.20:7420", "shoal join 192.168.1.20:7420 --code 7QFK-3M9X", "7QFK-3M9X", time() + 600)

    def happen(self, kind: EventKind, message: str, node: str = "", at: float | None = None, **figures: float) -> None:
        self.happened.append(ClusterEvent(len(self.happened) + 1, time() if at is None else at, kind, message, node, figures))

    async def cluster(self, pipeline: str) -> ClusterView:
        for view in (self.view, *self.others):
            if view.pipelines and pipeline in ("", view.pipeline):
                return view
        raise UnknownObject("pipeline", pipeline)

    async def experts(self, pipeline: str) -> ExpertsView:
        first = await self.cluster(pipeline) is self.view
        return self.experts_used if first else self.experts_of_others

    async def events(self, after: int, limit: int, kinds: Sequence[EventKind], node: str) -> EventPage:
        found = [e for e in self.happened if e.number > after and (not kinds or e.kind in kinds) and node in ("", e.node)]
        return EventPage(found[-limit:], len(self.happened), 1 if self.happened else 0)

    async def fleet_plan(self) -> FleetPlan:
        return FleetPlan(time(), (), on=False)

    async def history(self) -> History:
        return self.day or history(time())

    async def requests(self, owner: str | None) -> list[RequestView]:
        return [timeline.request for timeline in reversed(self.timelines.values())]

    async def timeline(self, answer: str, owner: str | None, after: int) -> Timeline | None:
        if (whole := self.timelines.get(answer)) is None:
            return None
        return msgspec.structs.replace(whole, steps=whole.steps[after:], next=len(whole.steps))

    async def preview(self, node: str, action: NodeAction) -> PlanView:
        self.previewed.append((node, action))
        return self.plan

    async def act(self, node: str, action: NodeAction) -> ActionResult:
        self.asked.append((node, action.do, action.name or action.memory))
        return ActionResult(not self.refusal, self.refusal or f"{node} leaves when its layers have moved")

    async def invite(self) -> Invitation:
        return self.invitation

    async def models(self) -> ModelsView:
        return self.listed

    async def pull(self, model: str) -> ActionResult:
        self.asked.append((model, "pull"))
        return ActionResult(not self.refusal, self.refusal or f"{model} is being fetched")

    async def load(self, model: str, replicas: int) -> ActionResult:
        self.asked.append((model, "load", replicas))
        return ActionResult(not self.refusal, self.refusal or f"{model} is being loaded")

    async def unload(self, model: str) -> ActionResult:
        self.asked.append((model, "unload"))
        return ActionResult(not self.refusal, self.refusal or f"{model} is unloaded")

    async def alias(self, alias: str, target: str) -> ActionResult:
        self.asked.append((alias, "alias", target))
        return ActionResult(not self.refusal, self.refusal or f"{alias} stands for {target or 'nothing any more'}")


def furnished(names: Sequence[str] = ("attic", "kitchen", "studio")) -> FakeOperator:
    """One that has something to show on every page."""
    made = FakeOperator(cluster(names))
    rng, now = random.Random(0), time()
    made.experts_used = ExpertsView({layer: [int(800 * rng.lognormvariate(0, 0.7)) for _ in range(128)] for layer in range(LAYERS)})
    for i, name in enumerate(names):
        made.happen(EventKind.JOINED, f"{name} joined: 8 threads, 12.0 GiB", name, now - 7000 + i, memory_bytes=12 << 30)
    made.happen(EventKind.PLACED, "a route over 3 nodes was chosen", at=now - 6900, layers=LAYERS)
    made.happen(EventKind.SERVING, "the route serves", at=now - 6840, epoch=1)
    made.happen(EventKind.LOST, f"{names[-1]} is gone: its connection broke", names[-1], now - 60, silence=0.02)
    made.happen(EventKind.RESUMED, "2 streams go on", at=now - 58.4, streams=2, pause=1.61)
    begun = now - 20
    first = steps(240, len(names), begun + 0.9, 24)
    pause = first[119].at + 0.05
    moved = [msgspec.structs.replace(s, epoch=2, at=s.at + 1.7, stages=s.stages[:-1]) for s in first[120:]]
    recovery = RecoverySpan(
        pause,
        pause + 1.61,
        "its connection broke",
        names[-1],
        0.02,
        {"fence": 0.03, "load": 0.74, "link": 0.08, "refill": 0.69, "resume": 0.07},
        311,
        119,
    )
    request = RequestView("chatcmpl-4f7e21", begun, "", "running", 192, 64, 240, begun + 0.9, 0.0, 22.4)
    made.timelines[request.id] = Timeline(request, {1: [*names], 2: [*names[:-1]]}, [*first[:120], *moved], [recovery], 240)
    made.listed = ModelsView(
        [
            ModelHere(MODEL.name, MODEL.reference, MODEL.weights, True, True, True, "Q4_K_M"),
            ModelHere("smollm2-135m", "smollm2-135m", 98_000_000, True, True, False, "SmolLM2-135M-Instruct"),
            ModelHere("llama-3.3-70b", "bartowski/Llama-3.3-70B-Instruct-GGUF:Q4_K_M", 42_500_000_000, False, False),
            ModelHere("qwen2.5-coder-1.5b", "qwen2.5-coder-1.5b", 1_117_000_000, False, True),
        ],
        [PullView("tinyllama-1.1b", now - 12, 141_000_000, 323_000_000)],
        36 << 30,
        [LoadedModel(MODEL.name, MODEL.reference, "", 1, 1, "qwen3moe", "Q4_K", MODEL.context, 30_500_000_000, ["chat", "tools", "json"])],
    )
    rest = made.view.stages
    made.plan = PlanView(
        [StageView(name, a, b) for name, a, b in spread([s.node for s in rest[:-1]])], 29.4, 41.7, {names[0]: 8, names[1]: 8}
    )
    return made


def busy_loading(names: Sequence[str]) -> ClusterView:
    """While the model is loaded."""
    view = cluster(names, state="loading", reason="2 of 3 nodes have loaded their layers", stages=[], measured=0.0)
    loading = msgspec.structs.replace(
        view.machines[-1], state="loading", words="loads its layers", progress=Progress("loads layers", 3_100_000_000, 6_080_000_000)
    )
    return msgspec.structs.replace(view, machines=[*view.machines[:-1], loading])


SMALL = ModelView("smollm2-135m", "smollm2-135m", 30, 8192, 98_000_000)


def fleet() -> FakeOperator:
    """Three pipelines on the same machines: two copies of one model, of which one is loaded, and another model."""
    made = furnished()
    first, names = made.view, [machine.name for machine in made.view.machines]
    copy = msgspec.structs.replace(busy_loading(names), pipeline=f"{MODEL.name}/2", requests=RequestsView(0, 0, 6, 0, 911))
    parts = {"attic": (0, 19), "studio": (19, 30)}
    other = msgspec.structs.replace(
        cluster(["attic", "studio"]),
        model=SMALL,
        machines=[
            msgspec.structs.replace(one, first_layer=parts.get(one.name, (0, 0))[0], end_layer=parts.get(one.name, (0, 0))[1])
            for one in first.machines
        ],
        stages=[StageView(name, a, b, 0.0004, 0.0033, 0.0, 0.4, 0.0031, 0.00027) for name, (a, b) in parts.items()],
        pipeline=f"{SMALL.name}/1",
        requests=RequestsView(5, 2, 12, 77, 2048),
        measured=123.4,
        predicted=140.0,
        predicted_single=61.0,
        advice=[],
    )
    views = [first, copy, other]
    listed = [
        PipelineView(view.pipeline, view.model.name, int(view.pipeline[-1]), view.state, view.reason, view.requests, view.measured, nodes)
        for view, nodes in zip(views, (names, names[:2], [*parts]), strict=True)
    ]
    made.view, *made.others = (msgspec.structs.replace(view, started=first.started, pipelines=listed) for view in views)
    made.experts_of_others = ExpertsView({7: [3, 9, 0, 1]})
    return made
