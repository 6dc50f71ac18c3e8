"""Several models, and several copies of one, on the same nodes of a simulated network: what each answers, and what becomes of it when nodes
are lost or another model goes."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest

from shoal.errors import ClusterError, ConfigError, NotReady, UnknownModel, UnknownObject
from shoal.node.head import Head
from shoal.node.model_engine import ModelEngine
from shoal.observed.event import EventKind
from shoal.request import Request, RequestId, SamplingParams
from shoal.scheduler.limits import Batching
from shoal.testing import toy
from tests.support.city import City, ToyOffer, said
from tests.support.town import LAYERS, MEMORY, play

LARGE, SMALL = LAYERS, 3
"""Layers of two models."""
GRAMMAR = json.dumps({"grammars": [{"lark_grammar": "start: /[a-f]{20,30}/"}]})


async def two_models(town: City, *names: str) -> tuple[ModelEngine, ModelEngine]:
    """Which serve."""
    large, small = town.serve("large", LARGE), town.serve("small", SMALL)
    for name in names:
        town.start(name)
    await town.serving(large, small)
    return large, small


async def two_copies(town: City, *names: str) -> ModelEngine:
    engine = town.serve("toy", LAYERS, replicas=2)
    for name in names:
        town.start(name)
    await town.serving(engine)
    return engine


# Two models


def test_two_models_on_the_same_nodes_answer_at_once() -> None:
    async def scenario(town: City) -> None:
        large, small = await two_models(town, "a", "b")
        assert town.nodes_of(large.copies.first) == town.nodes_of(small.copies.first) == {"a", "b"}
        requests = [(engine, town.request(f"{engine.name} {i}", 30)) for i in range(4) for engine in (large, small)]
        await asyncio.gather(*(town.right(engine, request) for engine, request in requests))
        tokens = {id.model: found.generated_tokens._by[()] for id, found in town.head.metrics.pipelines.items()}
        assert tokens == {"large": 120, "small": 120}
        assert toy.expected(requests[0][1], LARGE) != toy.expected(requests[0][1], SMALL), "or nothing could be confused"

    play(scenario, City, min_nodes=2, spread=True)


def test_a_node_that_is_lost_stops_both_models_and_both_go_on() -> None:
    async def scenario(town: City) -> None:
        large, small = await two_models(town, "a", "b", "c")
        asked = [(engine, town.request(engine.name, 60)) for engine in (large, small)]
        answers = [await town.under_way(engine, request) for engine, request in asked]
        (victim, *_) = town.nodes_of(large.copies.first) & town.nodes_of(small.copies.first)
        await town.kill(victim)
        await asyncio.gather(*answers)
        timelines = town.head.coordinator.recorder.timelines
        for engine, request in asked:
            timeline = timelines.timeline(f"answer to {request.id}")
            assert timeline is not None
            (recovery,) = timeline.recoveries
            assert recovery.node == victim and recovery.refilled > 0
            assert victim not in town.nodes_of(engine.copies.first)
        for runner in (large.copies.first, small.copies.first):
            assert runner.driver is not None and not runner.driver.scheduler.pool.used
        assert town.head.coordinator.recorder.events.counts[EventKind.LOST] == 1, "a node is lost once, however much it served"

    play(scenario, City, min_nodes=3, spread=True)


def test_what_happens_to_a_pipeline_is_told_with_its_name() -> None:
    async def scenario(town: City) -> None:
        await two_models(town, "a")
        told = [event.message for event in town.head.coordinator.recorder.events if event.kind is EventKind.SERVING]
        assert sorted(message.split(":")[0] for message in told) == ["large/1", "small/1"]

    play(scenario, City)


def test_a_model_that_is_closed_under_load_ends_its_requests_alone_and_leaves_its_memory_to_others() -> None:
    async def scenario(town: City) -> None:
        first, second, third = (town.serve(name, LAYERS) for name in ("first", "second", "third"))
        town.start("a", memory=2 * (8_500))
        await town.serving(first, second)
        await asyncio.sleep(5)
        assert not third.copies.first.serving and "memory" in third.state, third.state
        with pytest.raises(NotReady, match="memory"):
            third.submit(town.request("too soon"))
        stays = await town.under_way(second, town.request("stays", 60))
        ends = await town.under_way(first, town.request("ends", 60))
        await town.head.unload("first", "the model 'first' was unloaded")
        with pytest.raises(NotReady, match="the model 'first' was unloaded"):
            await ends
        await stays
        await town.serving(third)
        await town.right(third, town.request("at last"))
        assert town.agents["a"]._parts.keys() == {"second/1", "third/1"}
        assert 'model="first"' not in town.head.metrics.text().decode()
        with pytest.raises(UnknownModel):
            await town.head.unload("first", "again")

    play(scenario, City)


def test_a_model_comes_while_another_one_answers() -> None:
    async def scenario(town: City) -> None:
        large = town.serve("large", LARGE)
        for name in "ab":
            town.start(name)
        await town.serving(large)
        running = await town.under_way(large, town.request("one", 60))
        small = town.serve("small", SMALL)
        await town.serving(small)
        await town.right(small, town.request("two"))
        await running
        assert large.copies.first.pipeline.epoch == 1, "its route was left alone"

    play(scenario, City, min_nodes=2, spread=True)


def test_pinned_models_run_on_their_nodes_alone() -> None:
    async def scenario(town: City) -> None:
        large, small = town.serve("large", LARGE, pinned=["a"]), town.serve("small", SMALL, pinned=["b", "c"])
        for name in "abc":
            town.start(name)
        await town.serving(large, small)
        assert town.nodes_of(large.copies.first) == {"a"} and town.nodes_of(small.copies.first) <= {"b", "c"}
        await town.kill("a")
        await town.until(lambda: not large.copies.first.serving)
        await town.right(small, town.request("one"))
        assert not large.copies.first.serving and large.state == "it waits for node a"

    play(scenario, City)


def test_a_node_that_comes_to_another_head_keeps_what_that_serves_and_drops_the_rest() -> None:
    async def scenario(town: City) -> None:
        await two_models(town, "a")
        kept = town.agents["a"]._parts["small/1"]._model
        assert kept is not None and town.agents["a"]._parts.keys() == {"small/1", "large/1"}
        await town.replace_head()
        small = town.serve("small", SMALL)
        await town.serving(small)
        await town.until(lambda: town.agents["a"]._parts.keys() == {"small/1"})
        assert town.agents["a"]._parts["small/1"]._model is kept, "it was not loaded anew"
        await town.right(small, town.request("one"))

    play(scenario, City)


# Two copies


def test_requests_go_to_the_copy_that_has_fewer() -> None:
    async def scenario(town: City) -> None:
        engine = await two_copies(town, "a", "b")
        assert {frozenset(town.nodes_of(runner)) for runner in engine.copies} == {frozenset("a"), frozenset("b")}
        answers = [asyncio.ensure_future(town.right(engine, town.request(f"{i}", 30))) for i in range(4)]
        await asyncio.sleep(0.1)
        assert sorted(len(runner.requests) for runner in engine.copies) == [2, 2]
        await asyncio.gather(*answers)

    play(scenario, City, min_nodes=2)


REQUESTS = {
    "likeliest tokens": SamplingParams(temperature=0),
    "drawn tokens": SamplingParams(temperature=1.5, seed=7),
    "penalties": SamplingParams(temperature=0.7, seed=8, repetition_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.2),
    "log-probabilities": SamplingParams(temperature=0.7, seed=9, logprobs=2),
    "a grammar": SamplingParams(temperature=1.0, seed=10, grammar=GRAMMAR),
}


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("kind", REQUESTS)
def test_a_stream_goes_on_at_another_copy_as_if_nothing_had_happened(kind: str, n: int) -> None:
    sampling = REQUESTS[kind]
    stops = frozenset({toy.END}) if sampling.grammar else frozenset[int]()
    calm = Request(RequestId("calm"), [1, 2, 3, 4, 5], 25, sampling, n, stops)

    async def scenario(town: City) -> None:
        engine = await two_copies(town, "a", "b")
        wanted = [chunk async for chunk in engine.submit(calm)]
        request = msgspec.structs.replace(calm, id=RequestId("moved"))
        stream = engine.submit(request)
        chunks = await town.begun(stream, 5)
        before = town.runner_of(engine, request)
        (victim,) = town.nodes_of(before)
        await town.kill(victim)
        await town.until(lambda: not before.requests)
        assert town.runner_of(engine, request) is not before, "it was over before"
        chunks += [chunk async for chunk in stream]
        assert not before.serving
        for choice in range(n):
            # Whether prompt tokens were found in a cache is the only thing that may differ.
            plain = [[(c.token, c.logprob, c.alternatives, c.finish) for c in found if c.choice == choice] for found in (wanted, chunks)]
            assert plain[0] == plain[1]
        assert said(request, chunks) == toy.expected(request, LAYERS)
        for runner in engine.copies:
            assert runner.driver is not None and not runner.driver.scheduler.running and not runner.driver.scheduler.pool.used

    play(scenario, City, min_nodes=2)


def test_many_streams_move_at_once_and_wait_where_there_are_too_few_slots() -> None:
    async def scenario(town: City) -> None:
        engine = await two_copies(town, "a", "b")
        answers = [asyncio.ensure_future(town.right(engine, town.request(f"{i}", 60))) for i in range(6)]
        await asyncio.sleep(0.1)
        await town.kill("a")
        await asyncio.gather(*answers)
        (left,) = [runner for runner in engine.copies if runner.serving]
        views = await town.head.operator.requests(None)
        assert len(views) == 6 and all(view.state == "ended" for view in views)
        timelines = town.head.coordinator.recorder.timelines
        assert {timelines._answers[view.id].pipeline for view in views} == {str(left.pipeline.id)}

    play(scenario, City, min_nodes=2)


def test_a_copy_that_comes_back_serves_again() -> None:
    async def scenario(town: City) -> None:
        engine = await two_copies(town, "a", "b")
        lost = next(runner for runner in engine.copies if town.nodes_of(runner) == {"a"})
        await town.kill("a")
        await town.until(lambda: not lost.serving)
        await town.right(engine, town.request("one"))
        assert engine.state == "" and town.head.state == "", "a copy is left"
        town.start("a")
        await town.serving(engine)
        requests = [town.request(f"{i}", 30) for i in range(2)]
        answers = [await town.under_way(engine, request, 1) for request in requests]
        assert [len(runner.requests) for runner in engine.copies] == [1, 1]
        await asyncio.gather(*answers)

    play(scenario, City, min_nodes=2)


def test_a_request_whose_prompt_was_told_about_stays_and_waits_for_its_copy() -> None:
    """What is told of a prompt is told once: it cannot be computed anew elsewhere."""

    async def scenario(town: City) -> None:
        engine = await two_copies(town, "a", "b")
        request = Request(RequestId("scored"), [1, 2, 3], 40, SamplingParams(temperature=0), prompt_logprobs=0)
        running = await town.under_way(engine, request)
        runner = town.runner_of(engine, request)
        (victim,) = town.nodes_of(runner)
        await town.kill(victim)
        await town.until(lambda: not runner.serving)
        await asyncio.sleep(3)
        assert len(runner.requests) == 1
        town.start(victim)
        await running

    play(scenario, City, min_nodes=2)


def test_a_copy_that_is_closed_hands_its_streams_to_the_other_one() -> None:
    async def scenario(town: City) -> None:
        engine = await two_copies(town, "a", "b")
        answers = [await town.under_way(engine, town.request(f"{i}", 40)) for i in range(2)]
        engine.close_copy(1, "one copy is enough")
        assert [*engine.copies.runners] == [2]
        await asyncio.gather(*answers)
        assert 'replica="1"' not in town.head.metrics.text().decode()
        await town.until(lambda: sum(len(agent._parts) for agent in town.agents.values()) == 1)
        engine.close_copy(2, "none is wanted")
        with pytest.raises(NotReady):
            engine.submit(town.request("late"))

    play(scenario, City, min_nodes=2)


def test_the_last_copy_that_is_closed_ends_its_streams_with_the_reason() -> None:
    async def scenario(town: City) -> None:
        engine = town.serve("toy", LAYERS)
        town.start("a")
        await town.serving(engine)
        running = await town.under_way(engine, town.request("one", 60))
        engine.close_copy(1, "no copy is wanted")
        with pytest.raises(NotReady, match="no copy is wanted"):
            await running

    play(scenario, City)


def test_copies_of_one_model_beside_another_model() -> None:
    async def scenario(town: City) -> None:
        engine, other = town.serve("toy", LAYERS, replicas=2), town.serve("small", SMALL)
        for name in "ab":
            town.start(name, memory=2 * MEMORY)
        await town.serving(engine, other)
        asked = [(engine, "one"), (engine, "two"), (other, "three")]
        answers = [await town.under_way(model, town.request(name, 60)) for model, name in asked]
        await town.kill("a")
        await asyncio.gather(*answers)

    play(scenario, City, min_nodes=2, spread=True)


# Batching, and nodes that are waited for


def test_requests_of_a_model_that_gathers_them_begin_together_and_those_of_others_at_once() -> None:
    async def scenario(town: City) -> None:
        gathers, other = town.serve("gathers", LARGE, batching=Batching(2, 5.0)), town.serve("other", SMALL)
        town.start("a")
        await town.serving(gathers, other)
        now = asyncio.get_running_loop().time

        async def first_token(engine: ModelEngine, name: str) -> float:
            """When it came, in seconds from now."""
            began, running = now(), await town.under_way(engine, town.request(name, 60), tokens=1)
            seconds = now() - began
            await running
            return seconds

        assert await first_token(other, "of another") < 5
        assert 5 <= await first_token(gathers, "alone") < 10
        assert all(seconds < 5 for seconds in await asyncio.gather(first_token(gathers, "one"), first_token(gathers, "two")))
        await town.kill("a")
        town.start("b")  # on another route
        await town.serving(gathers, other)
        assert await first_token(gathers, "once more") >= 5

    play(scenario, City)


def test_what_waits_for_a_node_that_it_is_pinned_to_keeps_nobody_from_being_ready() -> None:
    async def scenario(town: City) -> None:
        other, pinned = town.serve("other", SMALL), town.serve("pinned", SMALL, pinned=["b"], priority=1)
        ready = asyncio.ensure_future(town.head.until_ready())
        await asyncio.sleep(5)
        assert not ready.done() and "0 of 1 nodes have joined" in pinned.state
        town.start("a")
        await ready
        assert (other.state, other.pinned, other.awaited) == ("", frozenset(), [])
        assert (pinned.state, pinned.pinned, pinned.awaited) == ("it waits for node b", {"b"}, ["b"])
        town.start("b")
        await town.serving(other, pinned)
        assert town.head.coordinator.rename("b", "c").done
        assert (pinned.state, pinned.pinned, pinned.awaited) == ("", {"c"}, [])
        pinned.scale(2)
        second = pinned.copies.runners[2].pipeline
        await town.until(lambda: "is meant for it" in second.why)
        assert "a is none of the nodes that pinned is pinned to, c runs pinned/1" in second.why

    play(scenario, City)


@pytest.mark.parametrize("replicas", [1, 2])
def test_what_finds_no_room_ends_the_wait_with_the_reason(replicas: int) -> None:
    async def scenario(town: City) -> None:
        town.serve("huge", 200, replicas=replicas)
        town.start("a")
        with pytest.raises(ClusterError, match="not enough memory"):
            await town.head.until_ready()

    play(scenario, City)


def test_a_copy_that_finds_no_room_keeps_nobody_from_being_ready_and_serves_when_there_is_some() -> None:
    async def scenario(town: City) -> None:
        engine = town.serve("toy", SMALL, replicas=2)
        town.start("a")
        await town.head.until_ready()
        assert engine.state == "" and engine.copies.runners[1].serving
        assert town.head.roomless == [
            "toy/2 waits for room: none of the nodes that have joined is meant for it: a runs toy/1",
        ]
        town.start("b")
        await town.serving(engine)
        assert town.head.roomless == []

    play(scenario, City)


def test_copies_that_find_room_are_waited_for() -> None:
    async def scenario(town: City) -> None:
        engine = town.serve("toy", SMALL, replicas=2)
        town.start("a")
        town.start("b")
        await town.head.until_ready()
        assert [copy.serving for copy in engine.copies] == [True, True]

    play(scenario, City, min_nodes=2)


# What operators see


def test_operators_see_each_pipeline_and_all_of_them() -> None:
    async def scenario(town: City) -> None:
        await two_models(town, "a", "b")
        operator = town.head.operator
        for name in ("large/1", "small/1"):
            view = await operator.cluster(name)
            assert view.pipeline == name and f"{view.model.name}/1" == name
            assert [(p.name, p.state, sorted(p.nodes)) for p in view.pipelines] == [
                ("large/1", "serving", ["a", "b"]),
                ("small/1", "serving", ["a", "b"]),
            ]
            assert sum(stage.end_layer - stage.first_layer for stage in view.stages) == {"large/1": LARGE, "small/1": SMALL}[name]
        assert (await operator.cluster("")).pipeline == "large/1"
        description = town.head.coordinator.describe()
        assert [(p.model, p.replica, p.state) for p in description.pipelines] == [("large", 1, "serving"), ("small", 1, "serving")]
        assert all({part.model for part in node.parts} == {"large", "small"} for node in description.nodes)
        with pytest.raises(UnknownObject, match="other/1"):
            await operator.cluster("other/1")

    play(scenario, City, min_nodes=2, spread=True)


def test_a_model_is_served_once() -> None:
    async def scenario(town: City) -> None:
        town.serve("toy", LAYERS)
        with pytest.raises(ConfigError, match="served already"):
            Head.serve(town.head, ToyOffer(town, "toy", LAYERS))

    play(scenario, City)
