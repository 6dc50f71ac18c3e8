"""A route of one toy stage behind memory streams, and a driver before it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from shoal.pipeline.driver import Driver
from shoal.pipeline.timing import StepTiming
from shoal.request import TokenChunk
from shoal.scheduler.plan import StageTrace, StepResult
from shoal.scheduler.scheduler import Limits, Scheduler
from shoal.transport.memory import MemoryStream, pair
from shoal.wire import messages
from shoal.wire.frame import Frame, Kind
from tests.support.toy_stage import ToyStage, limits

EPOCH = 3


class Route:
    def __init__(self, bounds: Limits | None = None) -> None:
        self.limits = bounds or limits(depth=2)
        first, self.steps = pair()
        last, self.results = pair()
        self.timings: list[StepTiming] = []
        self.driver = Driver(Scheduler(self.limits), first, last, EPOCH, self.timings.append)
        self.stage = ToyStage(self.limits.blocks, self.limits.block_tokens)
        self.first: MemoryStream = first

    async def work(self) -> None:
        """Runs steps until the head hangs up."""
        try:
            while True:
                await self.one()
        except (EOFError, ConnectionError):
            return

    async def one(self) -> None:
        step = messages.decode_step((await self.steps.receive()).meta)
        result = self.stage.run(messages.decode_plan(step.plan))
        await self.answer(StepResult(result.step, result.sampled, [StageTrace(0, 0, 0, 0, 0)]))

    async def answer(self, result: StepResult, epoch: int = EPOCH) -> None:
        await self.results.send(Frame(Kind.RESULT, epoch, result.step, messages.encode(result)))


async def collect(stream: object) -> list[TokenChunk]:
    return [chunk async for chunk in stream]  # type: ignore[attr-defined]


async def turns(count: int = 30) -> None:
    """Lets other tasks run."""
    for _ in range(count):
        await asyncio.sleep(0)


def play(scenario: Callable[[Route, asyncio.Task[None]], Awaitable[None]], bounds: Limits | None = None, *, work: bool = True) -> None:
    """Runs a scenario before a route; one that hangs fails."""

    async def whole() -> None:
        route = Route(bounds)
        running = asyncio.ensure_future(route.driver.run())
        working = asyncio.ensure_future(route.work()) if work else None
        try:
            async with asyncio.timeout(2):
                await scenario(route, running)
        finally:
            for task in (running, working):
                if task is not None:
                    task.cancel()
            await asyncio.gather(*(t for t in (running, working) if t is not None), return_exceptions=True)

    asyncio.run(whole())
