"""A cluster as its head publishes it, while nodes come, serve and go."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import msgspec

from shoal.discovery.changes import changes
from shoal.discovery.topology import JOINING, NodeState, Topology, decoded
from tests.support.city import City
from tests.support.topologies import numbers
from tests.support.town import LAYERS, Town, play


def told(before: Topology, now: Topology) -> list[tuple[str, str | None]]:
    return [(change.kind, change.node) for change in changes(before, now)]


def test_nodes_join_serve_and_are_lost():
    async def scenario(town: Town) -> None:
        empty = town.head.topology()
        assert (empty.route.state, empty.route.stages, dict(empty.nodes)) == ("waiting", [], {})
        town.start("a")
        while not town.head.topology().nodes:  # noqa: ASYNC110 - simulated time, in which measuring a link takes milliseconds
            await asyncio.sleep(0.0001)
        assert town.head.topology().nodes["a"].state == JOINING
        town.start("b")
        await town.serving(2)

        serving = town.head.topology()
        assert serving.route.state == "serving" and serving.route.epoch == town.head.pipeline.epoch
        assert {stage.node for stage in serving.route.stages} == {"a", "b"}
        assert [numbers(stage.layers) for stage in serving.route.stages] == [{0, 1}, {2, 3}]
        for name, node in serving.nodes.items():
            assert (node.name, node.role, node.state, node.held) == (name, "layers", "serving", 0)
            assert node.layers == next(stage.layers for stage in serving.route.stages if stage.node == name)
            assert node.address.startswith(f"{name}:") and node.memory > node.weights > 0 and node.round_trip > 0
            assert decoded(msgspec.json.encode(node), NodeState) == node

        await town.until(lambda: set(town.head.loads._nodes) == {"a", "b"})
        await town.kill("b")
        await town.until(lambda: "b" not in town.head.topology().nodes)
        now = town.head.topology()
        lost = changes(serving, now)[0]
        assert (lost.kind, lost.node, lost.reason) == ("lost", "b", "its connection ended")
        assert set(town.head.loads._nodes) == {"a"}
        await town.serving(1)
        assert ("moved", "a") in told(serving, town.head.topology())
        assert numbers(town.head.topology().nodes["a"].layers) == set(range(LAYERS))

    play(scenario, min_nodes=2, spread=True)


def test_a_silent_node_is_suspected_and_then_lost():
    async def scenario(town: Town) -> None:
        town.start("a")
        await town.serving(1)
        town.network.freeze(town.hosts["a"])
        before = town.head.topology()
        await town.until(lambda: town.head.topology().nodes["a"].state == "suspected")
        assert told(before, town.head.topology())[0] == ("changed", "a")
        await town.until(lambda: not town.head.topology().nodes)
        (lost, *_) = changes(before, town.head.topology())
        assert lost.kind == "lost" and "nothing was heard" in lost.reason
        town.network.thaw(town.hosts["a"])

    play(scenario)


def test_a_node_that_is_drained_left():
    async def scenario(town: Town) -> None:
        for name in "ab":
            town.start(name)
        await town.until(lambda: len(town.head.cluster.members) == 2 and town.head.serving)
        before = town.head.topology()
        name = before.route.stages[0].node
        town.agents[name].leave()
        await town.until(lambda: town.head.topology().nodes[name].state == "draining")
        await town.until(lambda: name not in town.head.topology().nodes)
        assert ("left", name) in told(before, town.head.topology())

    play(scenario)


def test_load_and_requests_are_seen_while_a_stream_runs():
    async def scenario(town: Town) -> None:
        town.start("a")
        await town.serving(1)
        idle, ran = town.head.topology(), list[str]()
        town.head.loads.ran = lambda name, seconds: ran.append(name)
        stream = town.head.runner.submit(town.request("one", 60))
        said = [await anext(stream)]
        requests = town.head.topology().route.requests
        assert (requests.running, requests.waiting, requests.slots) == (1, 0, 2)
        said += [chunk async for chunk in stream]
        await town.until(lambda: town.head.topology().nodes["a"].load.steps >= len(said))
        now = town.head.topology()
        assert len(said) > idle.nodes["a"].load.steps
        assert told(idle, now) == [("load", None)]
        assert set(ran) == {"a"} and len(ran) >= len(said)

    play(scenario)


def test_names_that_cannot_be_published_are_told_apart():
    async def scenario(town: Town) -> None:
        for host in ("a", "b"):
            town.start(host)
            town.agents[host]._settings = replace(town.agents[host]._settings, name="long \x1b[2J" * 20 + host)
        await town.until(lambda: len(town.head.cluster.members) == 2)
        shown = town.head.topology().nodes
        assert len(shown) == 2 and all(name.isprintable() and name == node.name for name, node in shown.items())

    play(scenario, min_nodes=3)


def test_all_pipelines_are_published_and_the_nodes_of_a_head_without_models() -> None:
    async def scenario(town: City) -> None:
        large, small = town.serve("large", 6), town.serve("small", 4, replicas=2)
        for name in "ab":
            town.start(name)
        await town.serving(large, small)
        shown = town.head.topology()
        assert shown.route.pipeline == "large/1" and [route.pipeline for route in shown.others] == ["small/1", "small/2"]
        for engine in (large, small):
            for runner in engine.copies:
                (route,) = [one for one in (shown.route, *shown.others) if one.pipeline == str(runner.pipeline.id)]
                assert {stage.node for stage in route.stages} == town.nodes_of(runner) and route.requests.slots > 0
        weights = sum(
            runner.pipeline.holdings[number].weight_bytes
            for runner in town.head.coordinator.runners.values()
            for number in runner.pipeline.route
        )
        await town.until(
            lambda: sum(node.weights for node in town.head.topology().nodes.values()) == weights
        )  # nodes tell it in heartbeats
        of_small = {name: node.further for name, node in shown.nodes.items() if node.further}
        assert of_small == {
            stage.node: {route.pipeline: stage.layers} for route in shown.others for stage in route.stages if stage.node in of_small
        }
        assert of_small, "a node has parts of both models"

        small.scale(1)
        assert [route.pipeline for route in town.head.topology().others] == ["small/1"]
        for name in ("large", "small"):
            await town.head.unload(name, "nobody asks for it")
        bare = town.head.topology()
        assert (bare.route.model, bare.route.state, bare.others) == ("", "waiting", [])
        assert {name: (node.state, node.layers) for name, node in bare.nodes.items()} == {"a": ("idle", ""), "b": ("idle", "")}
        assert bare.nodes["a"].memory == shown.nodes["a"].memory and bare.nodes["a"].identity == shown.nodes["a"].identity
        town.start("c")
        await town.until(lambda: "c" in town.head.topology().nodes and town.head.topology().nodes["c"].state == "idle")

    play(scenario, City, min_nodes=2)
