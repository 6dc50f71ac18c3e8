"""A whole pipeline in one process: the real driver, scheduler, wire and executors, over memory streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

from shoal.config import KvType, Precision, RuntimeName
from shoal.errors import StageLost
from shoal.executor.base import Packed, Runtime, WeightBlock
from shoal.executor.constraint import Grammars
from shoal.executor.runtimes import factory
from shoal.models.weights import Weights
from shoal.native import BLOCK_TOKENS
from shoal.node.stage_service import StageService
from shoal.pipeline.driver import Driver
from shoal.pipeline.route import Route
from shoal.request import Alternative, Request, RequestId, SamplingParams
from shoal.scheduler.limits import Limits
from shoal.scheduler.scheduler import Scheduler
from shoal.transport.memory import pair
from shoal.wire.frame import WireCodec
from tests.support.stages import stage


def splits(layers: int, stages: int) -> list[range]:
    bounds = [layers * i // stages for i in range(stages + 1)]
    return [range(a, b) for a, b in pairwise(bounds)]


@lru_cache(160)
def _packed(precision: Precision, weights: Weights, block: WeightBlock) -> Packed:
    """For one pipeline after another: what they share is only read."""
    return _native(precision, weights, 1, KvType.FP32).pack(weights, block)


def _native(precision: Precision, weights: Weights, threads: int, kv_type: KvType) -> Runtime:
    return factory(RuntimeName.NATIVE, precision, kv_type, threads)(weights, 0)


class _Sharing:
    """A runtime whose blocks may have been packed for another one."""

    def __init__(self, precision: Precision, weights: Weights, threads: int, kv_type: KvType) -> None:
        self._precision, self._runtime = precision, _native(precision, weights, threads, kv_type)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def pack(self, weights: Weights, block: WeightBlock, without: Container[int] = ()) -> Packed:
        return _packed(self._precision, weights, block)


@contextlib.asynccontextmanager
async def pipeline(
    weights: Weights,
    stages: int = 1,
    *,
    precision: Precision = Precision.AUTO,
    blocks: int = 256,
    slots: int = 32,
    step_tokens: int = 256,
    threads: int = 1,
    kv_type: KvType = KvType.FP32,
    grammars: Grammars | None = None,
) -> AsyncIterator[Driver]:
    limits = Limits(blocks, BLOCK_TOKENS, weights.spec.context, slots, step_tokens, 1000, stages)
    pool = ThreadPoolExecutor(1)
    links = [pair() for _ in range(stages + 1)]
    services: list[StageService] = []

    async def compute(work: Callable[[], Any], size: int) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    def make(weights: Weights, layer: int) -> Any:
        return _Sharing(precision, weights, threads, kv_type)

    for i, layers in enumerate(splits(len(weights.spec.layers), stages)):
        executor = stage(weights, layers, blocks=blocks, make_runtime=make, grammars=grammars)
        service = StageService(executor, epoch=1, stage=i, stages=stages, wire_codec=WireCodec.RAW, compute=compute)
        service.link(links[i + 1][0])
        services.append(service)
    driver = Driver(Scheduler(limits), lambda timing: None)
    loop = asyncio.get_running_loop()
    running = [loop.create_task(service.serve(links[i][1])) for i, service in enumerate(services)]
    driving = loop.create_task(driver.drive(Route(1, links[0][0], links[stages][1]), [], lambda tokens: None))
    try:
        yield driver
        driver.scheduler.check()
    finally:
        driver.close(StageLost("the test is over"))
        await asyncio.gather(driving, *running, return_exceptions=True)
        for service in services:
            service.close()
        pool.shutdown()


def asked(name: str, prompt: Sequence[int], tokens: int, *, n: int = 1, sampling: SamplingParams | None = None) -> Request:
    """By default greedily, with the log-probabilities of the likeliest tokens: their bits show what the tokens hide."""
    return Request(RequestId(name), list(prompt), tokens, sampling or SamplingParams(temperature=0, logprobs=2), n)


Drawn = tuple[int, float | None, tuple[Alternative, ...]]
"""A token, and the log-probabilities that were asked for."""


async def answered(driver: Driver, request: Request) -> list[list[Drawn]]:
    """What each choice says."""
    out: list[list[Drawn]] = [[] for _ in range(request.n)]
    async for chunk in driver.submit(request):
        assert chunk.token is not None
        out[chunk.choice].append((chunk.token, chunk.logprob, chunk.alternatives))
    return out
