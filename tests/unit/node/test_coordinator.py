"""The head and its nodes in a simulated network: what is counted, what is forgotten, and how a node leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from shoal.config import HeadSettings, NodeSettings, composed
from shoal.control import messages as control
from shoal.errors import StageLost
from shoal.executor.journal import JournalLimits
from shoal.executor.measure import Speed
from shoal.membership.instructions import Instruction
from shoal.node.agent import Agent
from shoal.node.coordinator import Coordinator
from shoal.node.interruption import Interruption
from shoal.node.observer import Served
from shoal.pipeline.timing import StepTiming
from shoal.pipeline.token_stream import TokenStream
from shoal.request import Request, RequestId, SamplingParams, TokenChunk
from shoal.testing import toy
from shoal.testing.clock import SimulatedLoop
from shoal.testing.network import Host, Network, SimWorld

LAYERS = 4


class Counts:
    def __init__(self) -> None:
        self.interruptions: list[Interruption] = []
        self.left: list[str] = []

    def step(self, timing: StepTiming) -> None: ...
    def sampled(self, chunks: list[TokenChunk]) -> None: ...
    def heartbeat(self, node: str, heartbeat: control.Heartbeat) -> None: ...

    def interruption(self, ended: Interruption) -> None:
        self.interruptions.append(ended)

    def gone(self, node: str) -> None:
        self.left.append(node)


class Town:
    """A head, and nodes that come and go."""

    def __init__(self, **settings: object) -> None:
        self.network = Network(Random(1), lambda what: None)
        self.counts = Counts()
        self.settings = composed(HeadSettings, {"host": "head", "slots": 2, "kv_tokens": 192, "context": 160, **settings})
        served = Served("toy", "toy", toy.cost(LAYERS), 160)
        self.head = Coordinator(self.settings, served, SimWorld(self.network, self.network.host("head")), self.counts)
        self.hosts: dict[str, Host] = {}
        self.agents: dict[str, Agent] = {}
        self.running: dict[str, asyncio.Task[str]] = {}

    def start(self, name: str) -> None:
        self.hosts[name] = host = self.hosts.get(name) or self.network.host(name)
        host.alive = True
        memory = 2 * LAYERS * (toy.LAYER_BYTES + toy.KV_BYTES * 192) + 5000
        environment = SimWorld(self.network, host)
        journals = JournalLimits(1 << 20, 0)
        self.agents[name] = agent = Agent(
            NodeSettings(name=name, threads=1),
            "head:7420",
            environment,
            lambda order: toy.ToyModel(LAYERS, journals),
            Speed(1e6, 1e6),
            memory,
        )
        self.running[name] = asyncio.get_running_loop().create_task(agent.run())

    async def kill(self, name: str) -> None:
        host, running = self.hosts[name], self.running.pop(name)
        self.network.crash(host)
        for task in (*host.tasks, running):
            task.cancel()
        await asyncio.gather(running, return_exceptions=True)

    async def until(self, what: Callable[[], object]) -> None:
        async with asyncio.timeout(300):
            while not what():  # noqa: ASYNC110 - simulated time
                await asyncio.sleep(0.05)

    async def serving(self, stages: int) -> None:
        await self.until(lambda: self.head.serving and len(self.head.cluster.route) == stages)

    def request(self, name: str, tokens: int = 8) -> Request:
        return Request(RequestId(name), [1, 2, 3], tokens, SamplingParams(temperature=0))

    async def answer(self, request: Request) -> list[int | None]:
        return [chunk.token async for chunk in self.head.submit(request)]

    def remembered(self) -> list[int]:
        roster, members = self.head._roster, self.head.cluster.members
        return [len(d) for d in (roster.machines, roster.reached, roster._conversations, roster._nodes, roster._probing, members)]


def play(scenario: Callable[[Town], Awaitable[None]], **settings: object) -> None:
    loop = SimulatedLoop()
    asyncio.set_event_loop(loop)

    async def whole() -> None:
        town = Town(**settings)
        await town.head.start()
        try:
            async with asyncio.timeout(3000):
                await scenario(town)
        finally:
            await town.head.stop()
            for name in list(town.running):
                await town.kill(name)

    try:
        loop.run_until_complete(whole())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def test_a_loss_that_nobody_noticed_is_no_interruption():
    async def scenario(town: Town) -> None:
        for name in "abc":
            town.start(name)
        await town.serving(2)
        await town.answer(town.request("before"))
        await town.kill(town.head.cluster.members[town.head.cluster.route[0]].name)
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
        stream = town.head.submit(request)
        said = [(await anext(stream)).token]
        await town.kill(town.head.cluster.members[town.head.cluster.route[0]].name)
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


def test_a_node_that_leaves_while_its_link_is_measured_is_let_go_at_once():
    async def scenario(town: Town) -> None:
        town.start("a")
        agent = town.agents["a"]
        agent._tell = lambda line: agent.leave() if line.startswith("joined") else None
        assert await town.running["a"] == "it holds no layers; it may leave"
        assert not town.head._roster._probing and not town.head._roster._conversations

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
        stream = town.head.submit(request)
        said = [(await anext(stream)).token]
        name = town.head.cluster.members[town.head.cluster.route[0]].name
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
        name = town.head.cluster.members[town.head.cluster.route[0]].name
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
        town.head.requests.take_up(stream)
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
            broken.setattr(town.head.cluster, "_improve", fail)
            await asyncio.sleep(1)
        town.network.freeze(town.hosts["a"])
        await town.until(lambda: len(town.head.cluster.members) == 1)
        assert sum("a bug" in line for line in town.head.event_log) == 1
        town.network.thaw(town.hosts["a"])

    play(scenario, min_nodes=2, spread=True)


def test_what_was_ordered_by_a_head_that_is_gone_is_not_answered_to_the_next_one(monkeypatch: pytest.MonkeyPatch):
    """The next head's epochs have the same numbers."""

    async def scenario(town: Town) -> None:
        town.start("a")
        await town.serving(1)
        agent, said = town.agents["a"], list[control.NodeMessage]()
        monkeypatch.setattr(agent, "_say", said.append)
        loading, over = asyncio.Event(), asyncio.Event()

        async def late(order: control.Load) -> None:
            loading.set()
            await over.wait()
            raise OSError("too late")

        monkeypatch.setattr(agent._fetcher, "fill", late)
        agent._spawn(agent._load(control.Load(epoch=9, end_layer=1, layers=LAYERS)))
        await loading.wait()
        agent._epochs.clear()  # as when a membership ends
        over.set()
        await asyncio.sleep(1)
        assert not [message for message in said if isinstance(message, control.Failed)]

    play(scenario)


def test_a_node_that_cannot_enter_a_route_says_so_whatever_it_was():
    async def scenario(town: Town) -> None:
        town.start("a")
        await town.serving(1)
        town.agents["a"]._model.enter = fail  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
        town.start("b")
        async with asyncio.timeout(15):  # sooner than a link is given up
            await town.until(lambda: any("a bug" in line for line in town.head.event_log))

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    play(scenario, spread=True)
