"""The cluster's state machine over two halves of a model, brought to whichever phase a test begins in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shoal.errors import CapacityError, NotEnoughMemory
from shoal.membership.admission import AdmissionRules
from shoal.membership.events import (
    Heard,
    Joined,
    RouteFilled,
    RoutePaused,
    StageLinked,
    StageLoaded,
    Tick,
)
from shoal.membership.instructions import Instruction, LoadStage, Report
from shoal.membership.planner import Planner
from shoal.membership.route_machine import FILLING, LINKING, LOADING, PAUSING, SERVING, RouteMachine
from shoal.membership.state import Cluster, Terms
from shoal.pipeline_id import PipelineId
from shoal.placement.moves import Residency
from shoal.placement.partition import Placement, StagePlan
from shoal.placement.profile import NodeProfile

ONE = PipelineId("toy")


class OnePipeline(Cluster):
    """A cluster that serves one model."""

    def __init__(
        self,
        version: str,
        min_nodes: int,
        planner: Planner,
        silence: float,
        admission: AdmissionRules | None = None,
        degrade: bool = False,
    ) -> None:
        super().__init__(version, silence, admission)
        self.open(ONE, Terms(planner, min_nodes, degrade=degrade), 0)

    @property
    def pipeline(self) -> RouteMachine:
        return self.pipelines[ONE]


def dealt(*stages: tuple[str, int, int], kv_tokens: int = 64) -> Placement:
    return Placement(tuple(StagePlan(name, first, end, 1, 1.0, 1.0) for name, first, end in stages), kv_tokens, 0.0, 1)


@dataclass
class Halves:
    """Two nodes, two layers each: the first by name. What is lost goes to the first spare by name, else to the other node."""

    better: Placement | None = None
    alone: bool = True
    """One node can hold all."""
    beside: list[bool] = field(default_factory=list[bool])
    """Whether each recovery was while the old route served on."""

    def first(self, nodes: Sequence[NodeProfile], residencies: Mapping[str, Residency]) -> Placement:
        names = sorted(node.name for node in nodes)[:2]
        if len(names) < 2:
            raise NotEnoughMemory(2, 1)
        return dealt((names[0], 0, 2), (names[1], 2, 4))

    def recover(
        self, old: Placement, nodes: Sequence[NodeProfile], residencies: Mapping[str, Residency], tokens: int, beside: bool = False
    ) -> Placement:
        self.beside.append(beside)
        names = [node.name for node in nodes]
        spares = sorted(set(names) - {stage.node for stage in old.stages})
        stages = [stage.node if stage.node in names else (spares.pop(0) if spares else "") for stage in old.stages]
        left = [name for name in stages if name]
        if not left:
            raise CapacityError("no node is left")
        if len(stages) == len(left) == 2:
            return dealt((stages[0], 0, 2), (stages[1], 2, 4))
        if not self.alone:
            raise NotEnoughMemory(2, 1)
        return dealt((left[0], 0, 4))

    def takes(self, placement: Placement, beside: Placement | None = None) -> dict[str, int]:
        return {}

    def improve(self, now: Placement, nodes: Sequence[NodeProfile], residencies: Mapping[str, Residency], tokens: int) -> Placement | None:
        better, self.better = self.better, None
        return better


def cluster(min_nodes: int = 2, admission: AdmissionRules | None = None, alone: bool = True) -> OnePipeline:
    """alone: one node can hold all."""
    return OnePipeline("1", min_nodes, Halves(alone=alone), silence=8, admission=admission)


def planner(c: OnePipeline) -> Halves:
    assert isinstance(c.pipeline._planner, Halves)
    return c.pipeline._planner


def joined(node: int, version: str = "1", *, memory: int = 1, speed: float = 1.0, port: int = 0, start: int = 0) -> Joined:
    return Joined(node, start or node * 11, NodeProfile(f"n{node}", memory, speed, 1.0), "host", port or node, version)


def orders(out: list[Instruction]) -> list[Instruction]:
    return [i for i in out if not isinstance(i, Report)]


def reports(out: list[Instruction]) -> str:
    return "\n".join(i.message for i in out if isinstance(i, Report))


def loads(out: list[Instruction]) -> dict[int, tuple[int, int]]:
    return {i.node: (i.first, i.end) for i in out if isinstance(i, LoadStage)}


def only(out: list[Instruction], kind: type) -> list[Instruction]:
    return [i for i in out if isinstance(i, kind)]


def loading(*nodes: int, alone: bool = True) -> OnePipeline:
    c = cluster(alone=alone)
    for n in nodes:
        c.handle(joined(n), 0)
    assert c.pipeline.state == LOADING
    return c


def load(c: OnePipeline, now: float = 0) -> list[Instruction]:
    assert c.pipeline.coming is not None
    return [i for n in c.pipeline.coming.nodes for i in c.handle(StageLoaded(n, c.pipeline.coming.epoch, 5, "native"), now)]


def link(c: OnePipeline, now: float = 0) -> list[Instruction]:
    assert c.pipeline.coming is not None
    return [i for n in c.pipeline.coming.nodes for i in c.handle(StageLinked(n, c.pipeline.coming.epoch), now)]


def fill(c: OnePipeline, now: float = 0) -> list[Instruction]:
    return c.handle(RouteFilled(c.pipeline.epoch), now)


def finish(c: OnePipeline, now: float = 0) -> list[Instruction]:
    """Whatever is coming serves."""
    out = load(c, now)
    if c.pipeline.serving is not None:
        out += c.handle(RoutePaused(c.pipeline.serving.epoch), now)
    out += [*link(c, now), *fill(c, now)]
    assert c.pipeline.state == SERVING
    return out


def linking(*nodes: int, **options: bool) -> OnePipeline:
    c = loading(*nodes, **options)
    load(c)
    assert c.pipeline.state == LINKING
    return c


def filling(*nodes: int, **options: bool) -> OnePipeline:
    c = linking(*nodes, **options)
    link(c)
    assert c.pipeline.state == FILLING
    return c


def serving(*nodes: int, **options: bool) -> OnePipeline:
    c = filling(*nodes, **options)
    fill(c)
    assert c.pipeline.state == SERVING
    return c


def moving(phase: str = LOADING) -> OnePipeline:
    """1 and 2 serve; 3 is to take 2's place."""
    c = serving(1, 2, 3)
    planner(c).better = dealt(("n1", 0, 2), ("n3", 2, 4))
    tick(c, 6)
    if phase == PAUSING:
        load(c, 6)
    assert (c.pipeline._phase, c.pipeline.state) == (phase, SERVING)
    return c


def tick(c: OnePipeline, now: float, silent: Sequence[int] = ()) -> list[Instruction]:
    """Time passes, and all are heard but some."""
    for n in c.members:
        if n not in silent:
            c.handle(Heard(n), now)
    return c.handle(Tick(), now)
