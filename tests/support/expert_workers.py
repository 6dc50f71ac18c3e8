"""Workers that hold a model's experts, on loopback sockets, and a stage that asks them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from random import Random
from time import perf_counter
from typing import Any

from shoal.config import KvType, Precision, RuntimeName
from shoal.executor.base import Floats, StageOutput
from shoal.executor.cost import expert_bytes
from shoal.executor.expert_bank import ExpertBank
from shoal.executor.expert_split import RemoteExperts, Split
from shoal.executor.packed_layers import PackedFinder
from shoal.executor.runtimes import factory
from shoal.executor.shard import Shard
from shoal.models.spec import Experts
from shoal.models.weights import Weights
from shoal.node.expert_holders import Holders, Table
from shoal.node.expert_links import ExpertLinks
from shoal.node.expert_service import ExpertService
from shoal.node.stage_service import _advanced
from shoal.scheduler.plan import StepPlan
from shoal.transport.base import FrameStream
from shoal.transport.tcp import connect, listen
from shoal.wire.routed import Routed, Sums


def every_expert(weights: Weights) -> dict[int, frozenset[int]]:
    """By layer."""
    return {
        layer: frozenset(range(of.feed_forward.count))
        for layer, of in enumerate(weights.spec.layers)
        if isinstance(of.feed_forward, Experts)
    }


def bytes_of(weights: Weights, precision: Precision, experts: Table) -> int:
    """In memory."""
    return sum(len(some) * expert_bytes(weights.spec, weights, precision, layer) for layer, some in experts.items())


class Worker:
    """held: by layer. precision: of the products. memory: bytes that they may take; 0: what they need. packed: files of what does not fit."""

    def __init__(self, weights: Weights, held: Table, precision: Precision, memory: int = 0, packed: PackedFinder | None = None) -> None:
        self.bank = ExpertBank(weights.spec, precision, 1, packed=packed)
        self.bank.hold(held, weights, memory)
        self.pool = ThreadPoolExecutor(1)
        self.spoil: Callable[[Sums], Sums] = lambda sums: sums
        self.delay = 0.0
        self.service = ExpertService(self, self._compute, perf_counter)
        self.streams: list[FrameStream] = []

    @property
    def held(self) -> Mapping[int, frozenset[int]]:
        return self.bank.held

    @property
    def expert_rows(self) -> Any:
        return self.bank.expert_rows

    def run(self, routed: Routed) -> Sums:
        return self.spoil(self.bank.run(routed))

    async def _compute(self, work: Callable[[], Sums], size: int) -> Sums:
        await asyncio.sleep(self.delay)
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)

    async def start(self, port: int = 0) -> None:
        self._listener = await listen("127.0.0.1", port, self._serve)
        self.port = self._listener.port
        self._running = asyncio.get_running_loop().create_task(self.service.run())

    async def _serve(self, stream: FrameStream) -> None:
        stream.trust()
        self.streams.append(stream)
        with suppress(EOFError, OSError):
            await self.service.serve(stream)

    async def stop(self) -> None:
        """As when its process is killed. A second time it does nothing."""
        if self._running.done():
            return
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        for stream in self.streams:
            stream.abort()
        await self._listener.close()


async def _connected(workers: Mapping[str, Worker], name: str) -> FrameStream:
    stream = await connect("127.0.0.1", workers[name].port, 2.0)
    stream.trust()
    return stream


@asynccontextmanager
async def running(
    workers: Mapping[str, Worker], patience: float = 5.0, needed: Table | None = None, turns: int = 0, degrade: bool = False
) -> AsyncIterator[ExpertLinks]:
    """The links of a stage to workers, which are started. needed: by layer, what the stage cannot run itself; None: all that they hold."""
    for worker in workers.values():
        await worker.start()
    holders = Holders({name: worker.held for name, worker in workers.items()})
    links = ExpertLinks(
        holders,
        holders.experts if needed is None else needed,
        partial(_connected, workers),
        1,
        perf_counter,
        Random(0),
        patience,
        turns,
        degrade,
    )
    try:
        await links.open()
        yield links
    finally:
        await links.close()
        for worker in workers.values():
            await worker.stop()


class Asking:
    """A stage of all layers. away: by layer, the experts that it does not run itself. also: those that it may run itself. memory: if it streams
    its weights, from files that `packed` finds."""

    def __init__(
        self,
        weights: Weights,
        away: Mapping[int, frozenset[int]],
        precision: Precision,
        blocks: int = 16,
        also: Mapping[int, frozenset[int]] | None = None,
        split: Split | None = None,
        degrade: bool = False,
        packed: PackedFinder | None = None,
        memory: int = 0,
    ) -> None:
        layers = range(len(weights.spec.layers))
        self.shard = Shard(factory(RuntimeName.NATIVE, precision, KvType.FP32, 1), packed=packed)
        self.shard.load(layers, weights, streamed=memory > 0)
        self.split = split or Split(1, 1e-4)
        self.stage = self.shard.enter(layers, range(0), blocks, memory, RemoteExperts(away, also or {}, self.split, degrade))

    async def run(self, plan: StepPlan, links: ExpertLinks) -> StageOutput:
        program: Any = self.stage.program(plan, None)
        answer = None
        try:
            while not isinstance(found := _advanced(program, answer), StageOutput):
                answer = await links.collect() if type(found).__name__ == "Collect" else await links.send(found) or []  # pyright: ignore[reportArgumentType]
            return found
        finally:
            program.close()


def logits_of(stage: Any) -> list[Floats]:
    """Collects the logits of every step that the stage runs from now on."""
    seen: list[Floats] = []
    runtime = stage._runtime
    compute = runtime.logits

    def logits(hidden: Any, picked: Any, leases: Any) -> Floats:
        seen.append(compute(hidden, picked, leases))
        return seen[-1]

    runtime.logits = logits
    return seen
