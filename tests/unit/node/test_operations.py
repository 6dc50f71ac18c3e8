"""What operators see of a simulated cluster to which things happen, and what they have done to it. Every kind of event is made by what it is
about, here or in the tests named at the end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from shoal.control.messages import DismissRequest, Load
from shoal.errors import CapacityError, ClusterError
from shoal.membership import events
from shoal.models.description import Description
from shoal.models.spec import ModelSpec
from shoal.node.environment import Model
from shoal.node.model_engine import ModelEngine
from shoal.node.operations import Operations
from shoal.observed.cluster import NodeAction
from shoal.observed.event import ClusterEvent, EventKind
from shoal.request import Request
from shoal.testing import toy
from tests.support.town import LAYERS, Town, play

DESCRIPTION = Description("toy", "toy", Path("toy"), ModelSpec("toy", 8, 97, 1e-5, 160, False, ()), None, None)
MODELS = {"toy": cast(ModelEngine, SimpleNamespace(model=DESCRIPTION))}
"""Of an engine, its description is all that is looked at."""


def told(town: Town, kind: EventKind) -> list[ClusterEvent]:
    return [event for event in town.head.recorder.events if event.kind is kind]


async def busy(town: Town, stages: int, *names: str) -> tuple[Request, asyncio.Task[list[int | None]]]:
    """A cluster with a request that runs, of which some tokens have come."""
    for name in names:
        town.start(name)
    await town.serving(stages)
    request = town.request("one", 60)
    town.head.recorder.timelines.begun("answer", [request], town.head.now(), "toy/1")
    answering = asyncio.ensure_future(town.answer(request))
    await town.until(lambda: town.head.recorder.timelines.requests()[0].generated > 4)
    return request, answering


def test_a_cluster_that_comes_up_is_told_in_order():
    async def scenario(town: Town) -> None:
        for name in "ab":
            town.start(name)
        await town.serving(2)
        kinds = [event.kind for event in town.head.recorder.events]
        assert kinds == [EventKind.JOINED, EventKind.JOINED, EventKind.PLACED, EventKind.LOADED, EventKind.LOADED, EventKind.SERVING]
        assert {event.node for event in town.head.recorder.events} == {"a", "b", ""}
        assert all(event.figures["bytes"] > 0 for event in told(town, EventKind.LOADED))

    play(scenario, min_nodes=2, spread=True)


def test_a_loss_is_told_with_its_pause_in_the_timeline_of_whoever_waited():
    async def scenario(town: Town) -> None:
        request, answering = await busy(town, 2, "a", "b", "c")
        victim = next(m.name for m in town.head.cluster.members.values() if m.joined.node == town.head.pipeline.route[0])
        had = town.head.recorder.timelines.requests()[0].generated
        await town.kill(victim)
        assert await answering == toy.expected(request, LAYERS)[0]
        (lost,) = told(town, EventKind.LOST)
        assert lost.node == victim and lost.figures["silence"] >= 0
        assert told(town, EventKind.FENCED) and told(town, EventKind.REFILLED)[0].figures["tokens"] > 0
        (resumed,) = told(town, EventKind.RESUMED)
        assert resumed.node == victim
        timeline = town.head.recorder.timelines.timeline("answer")
        assert timeline is not None
        (recovery,) = timeline.recoveries
        assert recovery.node == victim and recovery.kept >= had
        assert recovery.ended - recovery.at == pytest.approx(resumed.figures["pause"])
        assert sum(recovery.parts.values()) == pytest.approx(recovery.ended - recovery.at)
        assert sum(step.tokens for step in timeline.steps) == timeline.request.generated == 60
        assert {step.epoch for step in timeline.steps} == set(timeline.epochs) and len(timeline.epochs) == 2
        assert victim in timeline.epochs[min(timeline.epochs)] and victim not in timeline.epochs[max(timeline.epochs)]

    play(scenario, min_nodes=3, spares=1, spread=True)


def test_a_node_that_is_frozen_is_suspected_and_heard_again():
    async def scenario(town: Town) -> None:
        for name in "ab":
            town.start(name)
        await town.until(lambda: len(town.head.cluster.members) == 2)
        town.network.freeze(town.hosts["a"])
        await town.until(lambda: told(town, EventKind.SUSPECTED))
        assert told(town, EventKind.SUSPECTED)[0].figures["silence"] > 0
        town.network.thaw(town.hosts["a"])
        await town.until(lambda: told(town, EventKind.HEARD))
        assert told(town, EventKind.HEARD)[0].node == "a" and not told(town, EventKind.LOST)

    play(scenario)


def test_what_operators_ask_of_nodes_is_told():
    async def scenario(town: Town) -> None:
        request, answering = await busy(town, 1, "a")
        town.start("b")
        await town.until(lambda: len(town.head.cluster.members) == 2)
        assert town.head.dismiss(DismissRequest(name="a", drain=True)).done
        assert "no node 'x'" in town.head.dismiss(DismissRequest(name="x")).message
        await town.until(lambda: told(town, EventKind.LEFT))
        assert [event.node for event in (*told(town, EventKind.DRAINING), *told(town, EventKind.LEFT))] == ["a", "a"]
        assert await answering == toy.expected(request, LAYERS)[0]
        town.head.dismiss(DismissRequest(name="b", drain=True))
        assert told(town, EventKind.GIVEN_UP)[-1].node == "b"
        town.head.dismiss(DismissRequest(name="b"))
        assert told(town, EventKind.LEFT)[-1].node == "b" and told(town, EventKind.SHORT)

    play(scenario)


def test_a_node_that_has_another_name_keeps_it_when_it_comes_back():
    async def scenario(town: Town) -> None:
        request, answering = await busy(town, 2, "a", "b")
        assert "already" in town.head.rename("a", "b").message and "1 to 48" in town.head.rename("a", "x" * 49).message
        assert "no node 'x'" in town.head.rename("x", "y").message
        assert town.head.rename("a", "big box").done
        assert {stage.node for stage in town.head.pipeline.placement.stages} == {"big box", "b"}  # pyright: ignore[reportOptionalMemberAccess]
        assert await answering == toy.expected(request, LAYERS)[0]
        assert set(town.head.topology().nodes) == {"big box", "b"} and "big box" in told(town, EventKind.RENAMED)[0].message
        await town.kill("a")
        await town.until(lambda: len(town.head.cluster.members) == 1)
        town.start("a")
        await town.until(lambda: set(town.head.topology().nodes) == {"big box", "b"})
        other = town.request("two")
        assert await town.answer(other) == toy.expected(other, LAYERS)[0]
        assert town.head.rename("big box", "a").done
        await town.serving(2)

    play(scenario, min_nodes=2, spread=True)


def test_a_cap_moves_layers_off_a_node_and_is_given_up_where_they_have_nowhere_to_go():
    async def scenario(town: Town) -> None:
        request, answering = await busy(town, 1, "a", "b")
        holder = next(m.name for m in town.head.cluster.members.values() if m.joined.node in town.head.pipeline.route)
        other = {"a": "b", "b": "a"}[holder]
        assert town.head.cap(holder, 1000).done
        await town.until(lambda: town.head.serving and [s.node for s in town.head.pipeline.placement.stages] == [other])  # pyright: ignore[reportOptionalMemberAccess]
        assert await answering == toy.expected(request, LAYERS)[0]
        refused = town.head.cap(other, 1000)
        assert not refused.done and "cannot be limited" in refused.message and told(town, EventKind.GIVEN_UP)[-1].node == other
        assert town.head.serving and town.head.cap(holder, None).done
        assert [event.figures for event in told(town, EventKind.CAPPED)] == [{"bytes": 1000}, {}]
        assert "no node 'x'" in town.head.cap("x", 1).message

    play(scenario)


def test_a_stage_that_becomes_slow_and_recovers_is_told():
    async def scenario(town: Town) -> None:
        for name in "ab":
            town.start(name)
        await town.serving(2)
        node = town.head.pipeline.route[0]
        for slower in (3.0, 1.0):
            town.head._handle(events.SpeedSeen(node, slower))
        assert [event.kind for event in town.head.recorder.events][-2:] == [EventKind.SLOW, EventKind.RECOVERED]
        assert told(town, EventKind.SLOW)[0].figures == {"slower": 3.0}

    play(scenario, min_nodes=2, spread=True)


def test_preempted_sequences_are_told():
    async def scenario(town: Town) -> None:
        town.start("a")
        await town.serving(1)
        requests = [town.request(name, 120) for name in ("one", "two")]
        answers = await asyncio.gather(*(town.answer(request) for request in requests))
        assert answers == [toy.expected(request, LAYERS)[0] for request in requests]
        await asyncio.sleep(11)
        assert sum(event.figures["count"] for event in told(town, EventKind.PREEMPTED)) > 0

    play(scenario)


def test_what_is_previewed_is_what_comes():
    async def scenario(town: Town) -> None:
        await busy(town, 2, "a", "b")
        operations, serving = Operations(town.head, MODELS, 0.0), town.head.pipeline.serving
        assert serving is not None
        kept, other = serving.placement.stages
        for action in (NodeAction("drain"), NodeAction("remove"), NodeAction("cap", memory=1000)):
            plan = await operations.preview(other.node, action)
            assert [(s.node, s.first_layer, s.end_layer) for s in plan.stages] == [(kept.node, 0, LAYERS)], action
            assert plan.moved == {kept.node: LAYERS - kept.end} and plan.why == ""
        same = await operations.preview(other.node, NodeAction("cap"))
        assert [s.node for s in same.stages] == [kept.node, other.node] and not any(same.moved.values())
        assert "there is no node 'x'" in (await operations.preview("x", NodeAction("drain"))).why
        assert town.head.pipeline.serving is serving and town.head.pipeline.coming is None, "nothing was done"
        assert (await operations.act(other.node, NodeAction("cap", memory=1000))).done
        assert "layers are being moved" in (await operations.preview(kept.node, NodeAction("cap", memory=1000))).why
        await town.serving(1)
        assert "memory" in (await operations.preview(kept.node, NodeAction("cap", memory=1000))).why
        alone = await operations.preview(other.node, NodeAction("remove"))
        assert [s.node for s in alone.stages] == [kept.node] and not any(alone.moved.values()), "it has no part any more"
        assert alone.predicted == alone.predicted_now > 0

    play(scenario, min_nodes=2, spread=True)


def test_nothing_is_previewed_where_nothing_is_served():
    async def scenario(town: Town) -> None:
        town.start("a")
        await town.until(lambda: town.head.cluster.members)
        assert "not being served" in (await Operations(town.head, MODELS, 0.0).preview("a", NodeAction("drain"))).why

    play(scenario, min_nodes=2)


def test_one_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shoal.node.agent.__version__", "0.0.1")

    async def scenario(town: Town) -> None:
        town.start("a")
        await town.until(lambda: told(town, EventKind.REFUSED))
        assert told(town, EventKind.REFUSED)[0].node == "a"

    play(scenario)


def test_what_the_cluster_would_do_without_a_stage_is_planned_beside_it():
    async def scenario(town: Town) -> None:
        await busy(town, 2, "a", "b", "c")
        path = town.head.pipeline.serving
        assert path is not None
        for node, stage in zip(path.nodes, path.placement.stages, strict=True):
            planned = town.head.pipeline.without(path, node, town.head.now())()
            assert stage.node not in {one.node for one in planned.stages} and planned.tokens_per_second > 0
        assert town.head.pipeline.serving is path, "nothing was moved"
        small = town.head.pipeline.without(path, path.nodes[0], town.head.now())
        for member in town.head.cluster.members.values():
            member.cap = 1000
        with pytest.raises(CapacityError):
            town.head.pipeline.without(path, path.nodes[0], town.head.now())()
        assert small().stages, "planned with what was so when it was asked"

    play(scenario, min_nodes=3, spread=True, spares=1)


def test_a_better_split_is_told():
    async def scenario(town: Town) -> None:
        await busy(town, 1, "a", "b")
        node = town.head.pipeline.route[0]
        town.head._handle(events.SpeedSeen(node, 20.0))
        await town.until(lambda: told(town, EventKind.RESPLIT))
        await town.until(lambda: town.head.serving and town.head.pipeline.route != [node])

    play(scenario)


class Broken(Town):
    """Node a cannot read the model."""

    def model(self, name: str, order: Load) -> Model:
        if name == "a":
            raise ClusterError("the file is torn")
        return super().model(name, order)


def test_a_node_that_cannot_load_its_part_is_told():
    async def scenario(town: Broken) -> None:
        town.start("a")
        await town.until(lambda: told(town, EventKind.FAILED))
        failed = told(town, EventKind.FAILED)[0]
        assert failed.node == "a" and "the file is torn" in failed.message

    play(scenario, Broken)


ELSEWHERE = {
    EventKind.REJECTED: "tests/e2e/test_operator.py",
    EventKind.CACHE: "tests/e2e/test_operator.py",
    EventKind.FETCHED: "tests/e2e/test_operator.py",
    EventKind.DEGRADED: "tests/e2e/test_expert_workers.py",
    EventKind.AWAY: "tests/unit/node/test_upstream_views.py",
    EventKind.BACK: "tests/unit/node/test_upstream_views.py",
    EventKind.FAULT: "tests/unit/node/test_coordinator.py",
    EventKind.SCALED: "tests/unit/node/test_scaler.py",
}
"""Kinds that are made in other tests."""


def test_every_kind_is_made_by_a_test():
    here = Path(__file__)
    for kind in EventKind:
        source = (here.parents[3] / ELSEWHERE[kind] if kind in ELSEWHERE else here).read_text().split("ELSEWHERE = {")[0]
        assert f"EventKind.{kind.name}" in source, kind
