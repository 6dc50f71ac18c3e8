"""The head and its nodes in a simulated network: what is counted, what is forgotten, and how a node leaves."""

from __future__ import annotations

import asyncio

import pytest

from shoal.control import messages as control
from shoal.errors import StageLost
from shoal.membership.instructions import Instruction
from shoal.observed.event import EventKind
from shoal.pipeline.token_stream import TokenStream
from shoal.testing import toy
from tests.support.town import LAYERS, Town, play


def test_a_loss_that_nobody_noticed_is_no_interruption():
    async def scenario(town: Town) -> None:
        for name in "abc":
            town.start(name)
        await town.serving(2)
        await town.answer(town.request("before"))
        await town.kill(town.head.cluster.members[town.head.pipeline.route[0]].name)
        await town.serving(2)
        await asyncio.sleep(100)
        await town.answer(town.request("after"))
        assert town.counts.interruptions == []

    play(scenario, min_nodes=3, spread=True, spares=1)


def test_a_loss_under_a_stream_is_an_interruption_of_five_parts():
    async def scenario(town: Town) -> None:
        for name in "abc":
            town.start(name)
        await town.serving(2)
        request = town.request("one", 60)
        stream = town.head.runner.submit(request)
        said = [(await anext(stream)).token]
        await town.kill(town.head.cluster.members[town.head.pipeline.route[0]].name)
        said += [chunk.token async for chunk in stream]
        assert [said] == toy.expected(request, LAYERS)
        (one,) = town.counts.interruptions
        assert list(one.parts()) == ["fence", "load", "link", "refill", "resume"]
        assert abs(sum(one.parts().values()) - (one.resumed - one.began)) < 1e-6
        assert one.tokens > 0

    play(scenario, min_nodes=3, spread=True, spares=1)


def test_nothing_is_remembered_of_nodes_that_are_gone():
    async def scenario(town: Town) -> None:
        for i in range(6):
            town.start(f"n{i}")
            await town.until(lambda: town.head.serving)
            await town.kill(f"n{i}")
            await town.until(lambda: not town.head.cluster.members)
        assert town.remembered() == [0] * 6
        assert town.counts.left == [f"n{i}" for i in range(6)]

    play(scenario)


def test_a_node_that_was_frozen_is_one_node_again():
    async def scenario(town: Town) -> None:
        for name in "ab":
            town.start(name)
        await town.until(lambda: len(town.head.cluster.members) == 2)
        town.network.freeze(town.hosts["a"])
        await town.until(lambda: len(town.head.cluster.members) == 1)
        town.network.thaw(town.hosts["a"])
        await town.until(lambda: len(town.head.cluster.members) == 2)
        await asyncio.sleep(30)
        assert {m.name for m in town.head.cluster.members.values()} == {"a", "b"}
        assert town.remembered() == [2] * 4 + [0, 2]
        assert await town.answer(town.request("one")) == toy.expected(town.request("one"), LAYERS)[0]

    play(scenario)


def test_a_member_does_not_become_a_standby():
    async def scenario(town: Town) -> None:
        town.start("a")
        await town.until(lambda: town.head.serving)
        (conversation,) = town.head.roster._conversations.values()
        town.head.heard(conversation, control.Follow(address="b:1"))
        await asyncio.sleep(5)
        assert town.head.roster.number(conversation) is not None

    play(scenario)


def test_a_node_that_leaves_while_its_link_is_measured_is_let_go_at_once():
    async def scenario(town: Town) -> None:
        town.start("a")
        agent = town.agents["a"]
        agent.tell = lambda line: agent.leave() if line.startswith("joined") else None
        assert await town.running["a"] == "it holds no layers; it may leave"
        assert not town.head.roster._probing and not town.head.roster._conversations

    play(scenario, min_nodes=2)


def test_a_node_whose_layers_have_nowhere_to_go_leaves_at_once():
    async def scenario(town: Town) -> None:
        town.start("a")
        await town.until(lambda: town.head.serving)
        began = asyncio.get_running_loop().time()
        town.agents["a"].leave()
        assert "nowhere to go" in await town.running["a"]
        assert asyncio.get_running_loop().time() - began < 5
        town.start("b")
        await town.until(lambda: town.head.serving)
        assert await town.answer(town.request("one")) == toy.expected(town.request("one"), LAYERS)[0]

    play(scenario)


def test_a_node_leaves_when_its_layers_were_moved_under_a_stream():
    async def scenario(town: Town) -> None:
        for name in "ab":
            town.start(name)
        await town.until(lambda: len(town.head.cluster.members) == 2 and town.head.serving)
        request = town.request("one", 60)
        stream = town.head.runner.submit(request)
        said = [(await anext(stream)).token]
        name = town.head.cluster.members[town.head.pipeline.route[0]].name
        town.agents[name].leave()
        assert "have been moved" in await town.running[name]
        said += [chunk.token async for chunk in stream]
        assert [said] == toy.expected(request, LAYERS)

    play(scenario)


def test_a_node_that_is_told_twice_leaves_at_once():
    async def scenario(town: Town) -> None:
        for name in "ab":
            town.start(name)
        await town.until(lambda: len(town.head.cluster.members) == 2 and town.head.serving)
        name = town.head.cluster.members[town.head.pipeline.route[0]].name
        town.network.freeze(town.hosts["ab".replace(name, "")])  # what should take the layers does not answer
        town.agents[name].leave()
        await asyncio.sleep(1)
        town.agents[name].leave()
        began = asyncio.get_running_loop().time()
        assert "at once" in await town.running[name]
        assert asyncio.get_running_loop().time() - began < 3

    play(scenario)


def test_requests_of_a_head_before_this_one_wait_for_nodes_but_not_for_ever():
    async def scenario(town: Town) -> None:
        stream = TokenStream(town.request("old"))
        town.head.runner.requests.take_up(stream)
        async with asyncio.timeout(40):
            with pytest.raises(StageLost, match="no nodes came for 30 s"):
                await anext(stream)

    play(scenario, wait=30.0)


def test_a_look_at_the_cluster_that_fails_is_said_and_not_the_last(monkeypatch: pytest.MonkeyPatch):
    async def scenario(town: Town) -> None:
        def fail(*_: object) -> list[Instruction]:
            raise RuntimeError("a bug")

        for name in "ab":
            town.start(name)
        await town.serving(2)
        with monkeypatch.context() as broken:
            broken.setattr(town.head.pipeline, "improve", fail)
            await asyncio.sleep(1)
        town.network.freeze(town.hosts["a"])
        await town.until(lambda: len(town.head.cluster.members) == 1)
        assert ["a bug" in event.message for event in town.head.recorder.events if event.kind is EventKind.FAULT] == [True]
        town.network.thaw(town.hosts["a"])

    play(scenario, min_nodes=2, spread=True)


def test_what_was_ordered_by_a_head_that_is_gone_is_not_answered_to_the_next_one(monkeypatch: pytest.MonkeyPatch):
    """The next head's epochs have the same numbers."""

    async def scenario(town: Town) -> None:
        town.start("a")
        await town.serving(1)
        agent, said = town.agents["a"], list[control.NodeMessage]()
        part = agent._parts["toy/1"]
        monkeypatch.setattr(agent, "say", said.append)
        loading, over = asyncio.Event(), asyncio.Event()

        async def late(order: control.Load) -> None:
            loading.set()
            await over.wait()
            raise OSError("too late")

        monkeypatch.setattr(agent.fetcher, "fill", late)
        agent.spawn(part.load(control.Load(epoch=9, end_layer=1, layers=LAYERS)))
        await loading.wait()
        part.end_membership()
        over.set()
        await asyncio.sleep(1)
        assert not [message for message in said if isinstance(message, control.Failed) and message.epoch == 9]

    play(scenario)


def test_a_node_that_cannot_enter_a_route_says_so_whatever_it_was():
    async def scenario(town: Town) -> None:
        town.start("a")
        await town.serving(1)
        town.agents["a"]._parts["toy/1"]._model.enter = fail  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
        town.start("b")
        async with asyncio.timeout(15):  # sooner than a link is given up
            await town.until(lambda: any("a bug" in line for line in town.head.recorder.lines(200)))

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    play(scenario, spread=True)
