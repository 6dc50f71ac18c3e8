"""A head that gives its models more and fewer copies by their load, in a simulated network."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import ClusterError
from shoal.node.model_engine import ModelEngine
from shoal.node.node_source import PoolSource
from shoal.node.scaler import Scaler
from shoal.observed.event import EventKind
from shoal.observed.fleet_plan import FleetPlan, ModelPlan
from shoal.testing import toy
from tests.support.town import LAYERS, play
from tests.unit.node.test_model_keeper import Kept, section

QUICK: dict[str, Any] = {
    "replicas_max": 2,
    "scale_up_after": 2.0,
    "scale_down_after": 10.0,
    "scale_up_cooldown": 1.0,
    "scale_down_cooldown": 5.0,
    "slots_target": 0.75,
}


class Pool:
    """Nodes that a test starts."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.fails = ""

    def count(self, nodes: Collection[str]) -> int:
        return len(nodes)

    async def at_least(self, nodes: int) -> str:
        if self.fails:
            raise ClusterError(self.fails)
        self.asked.append(nodes)
        return f"{nodes} nodes"


class Scaled(Kept):
    """A head with a scaler, and a pool of nodes that it may ask."""

    async def open(self) -> None:
        await super().open()
        self.pool = Pool()
        self.scaler = Scaler(self.head, self.keeper, self.settings, PoolSource(self.pool, 64, lambda: self.head.members))
        self.scaling = asyncio.ensure_future(self.scaler.run())

    async def close(self) -> None:
        assert not self.scaling.done(), "it looks at the loads until the head ends"
        self.scaling.cancel()
        await asyncio.gather(self.scaling, return_exceptions=True)
        await super().close()

    def told(self, kind: EventKind = EventKind.SCALED) -> list[str]:
        return [event.message for event in self.head.coordinator.recorder.events if event.kind is kind]

    def plan(self) -> ModelPlan:
        (told,) = self.scaler.plan().models
        return told

    @asynccontextmanager
    async def loaded_with(self, engine: ModelEngine, count: int) -> AsyncGenerator[None]:
        """So many requests at any time, each of which must be right in the end."""
        over = False

        async def ask(number: int) -> None:
            for turn in itertools.count():
                if over:
                    return
                await self.right(engine, self.request(f"{number} {turn}", 100))

        asking = [asyncio.ensure_future(ask(number)) for number in range(count)]
        yield
        over = True
        await asyncio.gather(*asking)


def scaled(folder: Path, scenario: Callable[[Scaled], Awaitable[None]], **settings: object) -> None:
    play(scenario, lambda **given: Scaled(folder, **given), **{**QUICK, **settings})


@pytest.mark.slow
def test_load_adds_a_copy_and_quiet_takes_it_away_though_plans_are_asked_for_and_streams_are_right(tmp_path: Path) -> None:
    async def scenario(city: Scaled) -> None:
        city.start("a")
        city.start("b")
        engine = city.serve("toy", LAYERS)
        await city.serving(engine)
        async with city.loaded_with(engine, 12):
            await asyncio.sleep(1)
            before = len(engine.copies.runners)
            plans = [city.scaler.plan() for _ in range(5)]
            assert len(engine.copies.runners) == before and all(plan.on for plan in plans)
            assert {plan.models for plan in plans} == {plans[0].models}
            await city.until(lambda: sum(runner.serving for runner in engine.copies) == 2)
            assert any(words.startswith("toy/2 is added on ") for words in city.told()), city.told()
        await city.until(lambda: len(engine.copies.kept) == 1)
        await city.until(lambda: len(engine.copies.runners) == 1)
        assert any("is to stop" in words for words in city.told()) and any("is gone" in words for words in city.told())
        await city.right(engine, city.request("after"))

    scaled(tmp_path, scenario)


def test_a_copy_that_is_to_stop_finishes_what_it_has_and_gets_nothing_new(tmp_path: Path) -> None:
    async def scenario(city: Scaled) -> None:
        city.start("a")
        city.start("b")
        engine = city.serve("toy", LAYERS, replicas=2)
        await city.serving(engine)
        running = [await city.under_way(engine, city.request(f"long {i}", 150)) for i in range(4)]
        first, second = engine.copies.runners[1], engine.copies.runners[2]
        assert len(first.requests) == len(second.requests) == 2
        engine.stop_copy(1)
        later = [asyncio.ensure_future(city.right(engine, city.request(f"later {i}", 20))) for i in range(4)]
        await city.until(lambda: len(second.requests) == 6)
        assert len(first.requests) == 2 and 1 in engine.copies.runners, "what it has goes on where it is"
        await asyncio.gather(*running, *later)
        await city.until(lambda: [*engine.copies.runners] == [2])
        await city.right(engine, city.request("after"))

    scaled(tmp_path, scenario, replicas_min=2, replicas_max=3, min_nodes=2)


def test_the_last_copy_to_stop_does_not_go_while_no_other_serves(tmp_path: Path) -> None:
    async def scenario(city: Kept) -> None:
        city.start("a")
        city.start("b")
        engine = city.serve("toy", LAYERS, replicas=2)
        await city.serving(engine)
        (name,) = city.nodes_of(engine.copies.runners[2])
        engine.stop_copy(1)
        await city.kill(name)
        await city.until(lambda: not engine.copies.runners[2].serving)
        await asyncio.sleep(5)
        assert 1 in engine.copies.runners
        await city.right(engine, city.request("at the one that is to stop"))

    play(scenario, lambda **given: Kept(tmp_path, **given), min_nodes=2)


def test_a_model_that_nobody_asks_for_goes_and_a_request_wakes_it(tmp_path: Path) -> None:
    async def scenario(city: Scaled) -> None:
        city.start("a")
        engine = city.serve("small", LAYERS)
        city.keeper._record(engine)
        await city.serving(engine)
        assert city.keeper.loadable == []
        await city.right(engine, city.request("one"))
        await city.until(lambda: not city.loaded)
        assert (city.plan().serving, city.plan().planned) == (0, 0), "a plan tells what came of the last one"
        assert city.keeper.loadable == ["small"] == city.keeper.resting, "those that nobody served stay unknown"
        await asyncio.sleep(30)
        assert not city.loaded and city.plan().wanted == 0 and city.head.topology().route.model == ""
        observed = city.scaler._autoscaler._models
        city.plan()
        assert city.scaler._autoscaler._models is observed, "a plan is asked of the last look"
        await city.right(await city.keeper.wanted("small"), city.request("two"))
        assert city.loaded == ["small"]
        await city.until(lambda: not city.loaded)
        await city.keeper.unload("small", "an operator wants it gone")
        assert city.keeper.loadable == []

    scaled(tmp_path, scenario, replicas_min=0, replicas_max=2, scale_idle=20.0)


def test_a_model_that_rests_has_the_slots_and_the_priority_of_its_section(tmp_path: Path) -> None:
    async def scenario(city: Scaled) -> None:
        city.start("a")
        city.keeper.begin("small")
        await city.until(lambda: city.keeper.resting == ["small"])
        load = city.scaler._resting("small")
        assert (load.new_slots, load.priority, load.replicas) == (3, 7, ())
        city.keeper.wake("small")
        (coming,) = city.scaler._resting("small").replicas
        assert coming.slots == 3

    own = section("small", slots=3, priority=7)
    scaled(tmp_path, scenario, replicas_min=0, scale_idle=20.0, sections=(own,))


def test_nodes_that_could_not_help_are_not_asked_for(tmp_path: Path) -> None:
    async def scenario(city: Scaled) -> None:
        city.start("a", memory=toy.KV_BYTES)
        await city.until(lambda: city.head.members)
        city.serve("huge", LAYERS)
        await city.until(lambda: city.told(EventKind.SHORT))
        await asyncio.sleep(60)
        assert city.pool.asked == [] and not any("asked for" in words for words in city.told(EventKind.SHORT))
        assert "room" in [hold.kind for hold in city.plan().holds] and city.plan().actions == ()

    scaled(tmp_path, scenario, more_nodes="ray")


@pytest.mark.slow
def test_what_finds_no_room_is_asked_for_and_starts_when_a_node_has_come(tmp_path: Path) -> None:
    async def scenario(city: Scaled) -> None:
        city.pool.fails = "it is away"
        city.start("a")
        engine = city.serve("toy", LAYERS)
        await city.serving(engine)
        async with city.loaded_with(engine, 6):
            await city.until(lambda: any("it is away" in words for words in city.told(EventKind.FAULT)))
            assert any("1 node is asked for (ray): no room for 1 replica" in words for words in city.told(EventKind.SHORT))
            assert [hold.kind for hold in city.plan().holds] == ["room"]
            city.pool.fails = ""
            await city.until(lambda: city.pool.asked)
            city.start("b")
            await city.until(lambda: sum(runner.serving for runner in engine.copies) == 2)
            await city.until(lambda: any("lacks no room any more" in words for words in city.told()))
        assert city.pool.asked == [2], "once"

    scaled(tmp_path, scenario, more_nodes="ray", max_nodes=8)


def test_what_was_wished_for_a_model_that_is_unloaded_is_taken_back(tmp_path: Path) -> None:
    async def scenario(city: Scaled) -> None:
        engine = city.serve("toy", LAYERS)
        await city.until(lambda: city.pool.asked == [1])
        assert city.head.metrics.scaling is not None
        assert city.head.metrics.scaling.nodes._by == {("toy",): 1}
        await city.keeper.unload(engine.name, "an operator wants it gone")
        await asyncio.sleep(5)
        assert city.scaler._source is not None and city.pool.asked == [1]
        assert city.head.metrics.scaling.nodes._by == {} == city.head.metrics.scaling.replicas._by
        city.start("a")
        await asyncio.sleep(30)
        assert city.pool.asked == [1], "nobody wants a second one"

    scaled(tmp_path, scenario, more_nodes="ray")


def test_a_lost_node_is_asked_for(tmp_path: Path) -> None:
    async def scenario(city: Scaled) -> None:
        city.start("a")
        city.start("b")
        engine = city.serve("toy", LAYERS, replicas=2)
        await city.serving(engine)
        await city.kill("b")
        await city.until(lambda: city.pool.asked == [2])
        assert len(engine.copies.runners) == 2, "it is served again as soon as there is a node"
        city.start("b")
        await city.serving(engine)
        await city.until(lambda: any("lacks no room" in words for words in city.told()))

    scaled(tmp_path, scenario, replicas_min=2, replicas_max=3, min_nodes=2, more_nodes="ray")


def test_a_copy_that_lost_its_node_is_given_up_when_the_load_is(tmp_path: Path) -> None:
    async def scenario(city: Scaled) -> None:
        city.start("a")
        city.start("b")
        engine = city.serve("toy", LAYERS, replicas=2)
        await city.serving(engine)
        (lost,) = city.nodes_of(engine.copies.runners[2])
        await city.kill(lost)
        await city.until(lambda: "toy/2 found no room, and is not wanted any more" in city.told())
        assert engine.copies.kept == [1] == [*engine.copies.runners]
        await city.right(engine, city.request("after"))
        await asyncio.sleep(60)
        assert engine.copies.kept == [1] and city.pool.asked == []

    scaled(tmp_path, scenario, more_nodes="ray", scale_down_after=60.0)


def test_the_least_number_is_there_at_once_and_somebody_elses_change_begins_the_cooldown(tmp_path: Path) -> None:
    async def scenario(city: Scaled) -> None:
        for name in "abc":
            city.start(name)
        engine = city.serve("toy", LAYERS)
        await city.until(lambda: sum(runner.serving for runner in engine.copies) == 2)
        assert any("--replicas-min is 2" in words for words in city.told())
        await asyncio.sleep(30)
        engine.scale(3)
        await city.serving(engine)
        await asyncio.sleep(20)
        assert any(hold.kind == "cooldown" for hold in city.plan().holds), city.plan()
        assert len(engine.copies.kept) == 3
        await city.until(lambda: len(engine.copies.runners) == 2)

    scaled(tmp_path, scenario, replicas_min=2, replicas_max=3, scale_down_cooldown=60.0)


def test_an_operator_keeps_to_the_bounds(tmp_path: Path) -> None:
    async def scenario(city: Scaled) -> None:
        assert city.keeper.bounded(2) == (2, "") and city.keeper.bounded(0) == (0, "")
        assert city.keeper.bounded(1) == (2, "2 replicas, not 1: --replicas-min is 2, --replicas-max 3")
        assert city.keeper.bounded(64)[0] == 3
        city.head.operator.keeper = city.keeper
        for name in "abc":
            city.start(name)
        engine = city.serve("toy", LAYERS)
        city.keeper._record(engine)
        await city.until(lambda: sum(runner.serving for runner in engine.copies) == 2)
        done = await city.head.operator.load("toy", 9)
        assert done.done and done.message == "toy is being loaded; 3 replicas, not 9: --replicas-min is 2, --replicas-max 3"
        refused = await city.head.operator.load("toy", 10)
        assert not refused.done and "served already; 3 replicas, not 10" in refused.message

    scaled(tmp_path, scenario, replicas_min=2, replicas_max=3)


def test_without_bounds_nothing_is_scaled_watched_or_counted_but_the_plan_says_what_the_load_asks_for(tmp_path: Path) -> None:
    async def scenario(city: Kept) -> None:
        city.start("a")
        city.start("b")
        engine = city.serve("toy", LAYERS)
        await city.serving(engine)
        scaler = Scaler(city.head, city.keeper, city.settings)
        assert not scaler.on and city.head.metrics.scaling is None
        streams = [asyncio.ensure_future(city.right(engine, city.request(f"long {i}", 100))) for i in range(12)]
        await city.until(lambda: any(runner.driver and runner.driver.scheduler.waiting for runner in engine.copies))
        plan: FleetPlan = scaler.plan()
        (told,) = plan.models
        assert not plan.on and not told.actions and told.wanted == 1
        assert [hold.kind for hold in told.holds] == ["maximum"] and {signal.name for signal in told.signals} >= {"queue", "slots"}
        assert engine.watch is None and len(engine.copies.runners) == 1
        await asyncio.gather(*streams)

    play(scenario, lambda **given: Kept(tmp_path, **given))
