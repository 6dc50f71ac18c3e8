"""A stream of the driver: choices that end, and streams that are closed."""

from __future__ import annotations

import asyncio

from shoal.errors import ConfigError
from shoal.pipeline.driver import Driver
from shoal.request import FinishReason, Request, RequestId, TokenChunk
from shoal.scheduler.limits import Limits
from shoal.scheduler.scheduler import Scheduler
from tests.support.route import Route, collect, play, turns
from tests.support.toy_stage import request


def test_a_choice_ended_twice_does_not_end_the_other():
    """end_choice() after the choice's last chunk was queued counts it twice; the stream of n=2 ends early."""

    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        stream = route.driver.submit(request("a", [1], 2, n=2))
        await turns(200)
        first = await anext(stream)
        stream.end_choice(first.choice)
        rest = await collect(stream)
        assert [c.finish for c in rest if c.choice != first.choice][-1:] != []
        assert sum(c.choice != first.choice for c in rest) == 2

    play(scenario)


def test_a_closed_stream_ends():
    """After close() a stream is empty for ever instead of over."""

    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        stream = route.driver.submit(request("a", [1], 9))
        stream.close()
        assert await asyncio.wait_for(collect(stream), 0.1) == []

    play(scenario, work=False)


def test_ending_a_choice_does_not_end_another() -> None:
    async def go() -> list[int]:
        driver = Driver(Scheduler(Limits(8, 16, 64, 4, 32, 8)), lambda timing: None)
        stream = driver.submit(Request(RequestId("a"), [1, 2, 3], 8, n=2))
        for choice, finish in [(0, None), (0, FinishReason.LENGTH), (1, None), (1, FinishReason.LENGTH)]:
            stream.put(TokenChunk(RequestId("a"), choice, 7, finish=finish))
        seen: list[int] = []
        async with asyncio.timeout(2):
            async for chunk in stream:
                seen.append(chunk.choice)
                if len(seen) == 1:
                    stream.end_choice(0)
        driver.close(ConfigError("over"))
        return seen

    assert asyncio.run(go()).count(1) == 2
