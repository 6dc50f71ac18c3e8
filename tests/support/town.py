"""A head and nodes that come and go, in a simulated network, with toy models."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import TypeVar

from shoal.config import HeadSettings, NodeSettings
from shoal.control import messages as control
from shoal.discovery.topology import Topology
from shoal.executor.journal import JournalLimits
from shoal.executor.measure import Speed
from shoal.membership.route_machine import RouteMachine
from shoal.node.agent import Agent
from shoal.node.coordinator import Coordinator
from shoal.node.environment import Model
from shoal.node.interruption import Interruption
from shoal.node.observer import Served
from shoal.node.pipeline_runner import PipelineRunner
from shoal.pipeline.timing import StepTiming
from shoal.pipeline_id import PipelineId
from shoal.request import Request, RequestId, SamplingParams, TokenChunk
from shoal.settings import composed
from shoal.testing import toy
from shoal.testing.clock import SimulatedLoop
from shoal.testing.network import Host, Network, SimWorld

LAYERS = 4
MEMORY = 2 * LAYERS * (toy.LAYER_BYTES + toy.KV_BYTES * 192) + 5000
"""Bytes of a node."""


class Counts:
    def __init__(self) -> None:
        self.interruptions: list[Interruption] = []
        self.causes: list[str] = []
        self.left: list[str] = []

    def step(self, timing: StepTiming, hops: tuple[float, ...]) -> None: ...
    def sampled(self, chunks: list[TokenChunk]) -> None: ...
    def heartbeat(self, node: str, heartbeat: control.Heartbeat) -> None: ...
    def report(self, node: str, report: control.PipelineReport) -> None: ...

    def route(self, nodes: Sequence[str]) -> None: ...

    def interruption(self, ended: Interruption, cause: str) -> None:
        self.interruptions.append(ended)
        self.causes.append(cause)

    def gone(self, node: str) -> None:
        self.left.append(node)


class OneModelHead(Coordinator):
    """It serves one model, with one copy."""

    @property
    def runner(self) -> PipelineRunner:
        return next(iter(self.runners.values()))

    @property
    def pipeline(self) -> RouteMachine:
        return self.runner.pipeline

    def topology(self, runner: PipelineRunner | None = None) -> Topology:
        return super().topology(runner or self.runner)


class Place:
    """A host for a head, and nodes that come and go."""

    def __init__(self, **settings: object) -> None:
        self.network = Network(Random(1), lambda what: None)
        self.settings = composed(HeadSettings, {"host": "head", "slots": 2, "kv_tokens": 192, "context": 160, **settings})
        self.hosts: dict[str, Host] = {"head": self.network.host("head")}
        self.agents: dict[str, Agent] = {}
        self.running: dict[str, asyncio.Task[str]] = {}

    async def open(self) -> None:
        """Starts the head."""
        raise NotImplementedError

    async def close(self) -> None:
        """Stops the head."""
        raise NotImplementedError

    async def crash(self, head: Coordinator) -> None:
        """The head dies; another one may be started in its place."""
        host, tasks = self.hosts["head"], [*head._tasks]
        self.network.crash(host)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        host.alive = True

    def start(self, name: str, memory: int = MEMORY) -> None:
        self.hosts[name] = host = self.hosts.get(name) or self.network.host(name)
        host.alive = True
        environment = SimWorld(self.network, host)
        self.agents[name] = agent = Agent(
            NodeSettings(name=name, threads=1),
            "head:7420",
            environment,
            lambda order: self.model(name, order),
            Speed(1e6, 1e6),
            memory,
        )
        self.running[name] = asyncio.get_running_loop().create_task(agent.run())

    def model(self, name: str, order: control.Load) -> Model:
        """What a node makes of its first order."""
        return toy.ToyModel(order.layers, JournalLimits(1 << 20, 0))

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

    def request(self, name: str, tokens: int = 8) -> Request:
        return Request(RequestId(name), [1, 2, 3], tokens, SamplingParams(temperature=0))


class Town(Place):
    """A head that serves one model with one copy."""

    def __init__(self, counts: Counts | None = None, **settings: object) -> None:
        super().__init__(**settings)
        self.counts = counts or Counts()
        self.head = self._head()

    def _head(self) -> OneModelHead:
        head = OneModelHead(self.settings, SimWorld(self.network, self.hosts["head"]), self.counts)
        head.open(PipelineId("toy"), Served("toy", "toy", toy.cost(LAYERS), 160, self.settings.engine), self.counts)
        return head

    async def open(self) -> None:
        await self.head.start()

    async def close(self) -> None:
        await self.head.stop()

    async def replace_head(self) -> None:
        """It dies, and another one is started in its place."""
        await self.crash(self.head)
        self.head = self._head()
        await self.head.start()

    async def serving(self, stages: int) -> None:
        await self.until(lambda: self.head.serving and len(self.head.pipeline.route) == stages)

    async def answer(self, request: Request) -> list[int | None]:
        return [chunk.token async for chunk in self.head.runner.submit(request)]

    def remembered(self) -> list[int]:
        roster, members = self.head.roster, self.head.cluster.members
        return [len(d) for d in (roster.machines, roster.reached, roster._conversations, roster._nodes, roster._probing, members)]


T = TypeVar("T", bound=Place)


def play(scenario: Callable[[T], Awaitable[None]], make: Callable[..., T] = Town, **settings: object) -> None:
    """In simulated time. make: given the settings."""
    loop = SimulatedLoop()
    asyncio.set_event_loop(loop)

    async def whole() -> None:
        town = make(**settings)
        await town.open()
        try:
            async with asyncio.timeout(3000):
                await scenario(town)
        finally:
            await town.close()
            for name in list(town.running):
                await town.kill(name)

    try:
        loop.run_until_complete(whole())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
