"""Routes of one toy stage behind memory streams, and a driver before them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from shoal.errors import StageLost
from shoal.pipeline import driver
from shoal.pipeline.driver import Driver
from shoal.pipeline.timing import StepTiming
from shoal.pipeline.token_stream import TokenStream
from shoal.request import TokenChunk
from shoal.scheduler.limits import Limits
from shoal.scheduler.plan import StageTrace, StepResult
from shoal.scheduler.scheduler import Scheduler
from shoal.transport.memory import pair
from shoal.wire import messages
from shoal.wire.frame import Frame, FrameKind
from tests.support.toy_stage import ToyStage, limits

EPOCH = 3
LAYERS = 4
ALL = [(0, LAYERS)]
"""The span of a route on which nothing is left of the keys and values."""


class Route:
    """One route; the next one has the same driver and another epoch, and finds the keys and values of the one before where it is told to."""

    def __init__(self, bounds: Limits | None = None, after: Route | None = None, *, kept: bool = False) -> None:
        self.limits = bounds or limits(depth=2)
        self.timings: list[StepTiming] = []
        self.driver = after.driver if after is not None else Driver(Scheduler(self.limits), self.timings.append)
        self.epoch = after.epoch + 1 if after is not None else EPOCH
        self.stage = ToyStage(self.limits.blocks, self.limits.block_tokens, after.stage if after is not None and kept else None)
        self.spans = [] if kept or after is None else ALL
        self.filled: list[int] = []
        self.first, self.steps = pair()
        self.last, self.results = pair()

    async def run(self) -> None:
        """Drives it."""
        await self.driver.drive(driver.Route(self.epoch, self.first, self.last), self.spans, self.filled.append)

    async def work(self) -> None:
        """Runs steps until the head hangs up."""
        try:
            while True:
                await self.one()
        except (EOFError, ConnectionError):
            return

    async def one(self) -> None:
        await self.answer(await self.result())

    async def result(self) -> StepResult:
        """Of the next step, not yet sent."""
        step = messages.decode_step((await self.steps.receive()).meta)
        result = self.stage.run(messages.decode_plan(step.plan))
        return StepResult(result.step, result.sampled, [StageTrace(0, 0, 0, 0, 0)], examined=result.examined)

    async def answer(self, result: StepResult, epoch: int | None = None) -> None:
        await self.results.send(Frame(FrameKind.RESULT, self.epoch if epoch is None else epoch, result.step, messages.encode(result)))

    def die(self) -> None:
        self.steps.abort()
        self.results.abort()


async def collect(stream: object) -> list[TokenChunk]:
    return [chunk async for chunk in stream]  # pyright: ignore[reportGeneralTypeIssues]


async def turns(count: int = 30) -> None:
    """Lets other tasks run."""
    for _ in range(count):
        await asyncio.sleep(0)


def play(scenario: Callable[[Route, asyncio.Task[None]], Awaitable[None]], bounds: Limits | None = None, *, work: bool = True) -> None:
    """Runs a scenario before a route; one that hangs fails, and so does one that leaves a task behind."""

    async def whole() -> None:
        route = Route(bounds)
        running = asyncio.ensure_future(route.run())
        working = asyncio.ensure_future(route.work()) if work else None
        try:
            async with asyncio.timeout(5):
                await scenario(route, running)
        finally:
            for task in (running, working):
                if task is not None:
                    task.cancel()
            await asyncio.gather(*(t for t in (running, working) if t is not None), return_exceptions=True)
        assert asyncio.all_tasks() == {asyncio.current_task()}, "tasks were left behind"

    asyncio.run(whole())


async def over(route: Route, running: asyncio.Task[None], *, kept: bool = False) -> Route:
    """The next route, once this one has ended; it works."""
    await asyncio.wait({running})
    return Route(route.limits, route, kept=kept)


async def finish(route: Route, *streams: TokenStream) -> list[list[int | None]]:
    """What is left of the streams, over a route that holds."""
    driving, working = asyncio.ensure_future(route.run()), asyncio.ensure_future(route.work())
    try:
        return [[chunk.token for chunk in chunks] for chunks in await asyncio.gather(*(collect(stream) for stream in streams))]
    finally:
        route.driver.scheduler.check()
        route.driver.close(StageLost("the test is over"))
        await asyncio.gather(driving, working, return_exceptions=True)
