"""A head that serves several models with several copies, in a simulated network."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import cast

from shoal.config import HeadSettings
from shoal.models.description import Description
from shoal.node.coordinator import Coordinator
from shoal.node.copies import Copies
from shoal.node.head import Head
from shoal.node.host_environment import HostEnvironment
from shoal.node.model_engine import ModelEngine, ModelOffer
from shoal.node.observer import Served
from shoal.node.pipeline_runner import PipelineRunner
from shoal.pipeline.token_stream import TokenStream
from shoal.request import Request, TokenChunk
from shoal.scheduler.limits import ALONE, Batching
from shoal.telemetry.metrics import Metrics, ModelMetrics
from shoal.testing import toy
from shoal.testing.network import Host, Network, SimWorld
from tests.support.town import Place


class ToyOffer(ModelOffer):
    """A toy model of so many layers, which decide its tokens."""

    def __init__(
        self,
        place: Place,
        name: str,
        layers: int,
        replicas: int = 1,
        pinned: Sequence[str] = (),
        priority: int = 0,
        batching: Batching = ALONE,
    ) -> None:
        description = Description(name, name, Path(name), toy.spec(layers), None, None)
        super().__init__(description, place.settings.engine, replicas, frozenset(pinned), priority, batching)


class ToyEngine(ModelEngine):
    """The real one, but for what it reads from a model's files: a toy has none."""

    def __init__(self, offer: ModelOffer, coordinator: Coordinator, metrics: Metrics, settings: HeadSettings, chance: Random) -> None:
        name = offer.model.name
        self.offer, self.model = offer, offer.model
        self.resume = 0.0
        self.used = coordinator.now()
        self.watch = None
        self.copies = Copies(settings.api.balance, coordinator.now, chance, self._moved, self._tell)
        self._coordinator, self._all_metrics = coordinator, metrics
        self._metrics = metrics.models[name] = ModelMetrics(name)
        self._experts = {}
        self._log = None
        cost = toy.cost(len(offer.model.spec.layers))
        self.served = Served(
            name,
            name,
            cost,
            offer.engine.context,
            offer.engine,
            offer.pinned,
            priority=offer.priority,
            batching=offer.batching,
        )
        for number in range(1, offer.replicas + 1):
            self.open(number)


class _Machine(SimWorld):
    def __init__(self, network: Network, host: Host) -> None:
        super().__init__(network, host)

    def close(self) -> None:
        """Nothing was opened."""


class CityHead(Head):
    """The real one, of toys."""

    def serve(self, offer: ModelOffer) -> ModelEngine:
        engine = self.engines[offer.model.name] = ToyEngine(offer, self.coordinator, self.metrics, self.settings, self._machine.rng)
        self._changed()
        return engine


class City(Place):
    """offers: what each head serves from its start on."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self.head = self._head()

    def _head(self) -> CityHead:
        machine = _Machine(self.network, self.hosts["head"])
        return CityHead(self.settings, [], cast(HostEnvironment, machine))

    async def open(self) -> None:
        await self.head.start()

    async def close(self) -> None:
        await self.head.stop()

    async def replace_head(self) -> None:
        """It dies, and another one is started in its place, which serves nothing yet."""
        await self.crash(self.head.coordinator)
        self.head = self._head()
        await self.head.start()

    def serve(
        self, name: str, layers: int, replicas: int = 1, pinned: Sequence[str] = (), priority: int = 0, batching: Batching = ALONE
    ) -> ModelEngine:
        return self.head.serve(ToyOffer(self, name, layers, replicas, pinned, priority, batching))

    def layers(self, engine: ModelEngine) -> int:
        return len(engine.model.spec.layers)

    def nodes_of(self, runner: PipelineRunner) -> set[str]:
        """Names of those that its route runs on."""
        return {runner.pipeline.members[node].name for node in runner.pipeline.route}

    def runner_of(self, engine: ModelEngine, request: Request) -> PipelineRunner:
        """That runs a request now."""
        (found,) = [runner for runner in engine.copies if runner.driver is not None and request.id in runner.driver._streams]
        return found

    async def serving(self, *engines: ModelEngine) -> None:
        """All copies."""
        await self.until(lambda: all(runner.serving for engine in engines for runner in engine.copies))

    async def begun(self, stream: TokenStream, tokens: int = 3) -> list[TokenChunk]:
        """The first tokens."""
        return [await anext(stream) for _ in range(tokens)]

    async def answer(self, engine: ModelEngine, request: Request) -> list[list[int]]:
        """The tokens of each choice. The request is begun as the API begins it."""
        (stream,) = await engine.begin(f"answer to {request.id}", b"", [request], named=False)
        try:
            return said(request, [chunk async for chunk in stream])
        finally:
            stream.close()
            engine.forget(f"answer to {request.id}")

    async def right(self, engine: ModelEngine, request: Request) -> None:
        """Fails where the answer is not that of a single stage without faults."""
        assert await self.answer(engine, request) == toy.expected(request, self.layers(engine)), request.id

    async def under_way(self, engine: ModelEngine, request: Request, tokens: int = 3) -> asyncio.Task[None]:
        """A request of which some tokens have come; the task ends when it is right."""
        task = asyncio.ensure_future(self.right(engine, request))
        timelines = self.head.coordinator.recorder.timelines
        await self.until(
            lambda: task.done() or any(r.generated >= tokens for r in timelines.requests() if r.id == f"answer to {request.id}")
        )
        assert not task.done(), f"{request.id} is over already"
        return task


def said(request: Request, chunks: Sequence[TokenChunk]) -> list[list[int]]:
    """The tokens of each choice."""
    return [[chunk.token for chunk in chunks if chunk.choice == choice and chunk.token is not None] for choice in range(request.n)]
