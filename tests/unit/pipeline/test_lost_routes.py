"""Routes that are lost while a result is due: what the driver raises."""

from __future__ import annotations

import asyncio

import pytest

from shoal.errors import StageLost
from shoal.pipeline import route as pipeline
from shoal.pipeline.driver import Driver
from shoal.request import Request, RequestId
from shoal.scheduler.limits import Limits
from shoal.scheduler.plan import StepResult
from shoal.scheduler.scheduler import Scheduler
from shoal.transport.memory import pair
from shoal.wire import messages
from shoal.wire.frame import Frame, FrameKind
from tests.support.route import Route, play, turns
from tests.support.toy_stage import request


def test_losing_the_link_to_the_first_stage_breaks_the_route():
    """Nobody reads `first`: while a result is due the driver never hears that stage 0 hung up."""

    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        route.driver.submit(request("a", [1], 9))
        await turns()
        route.steps.abort()
        with pytest.raises(StageLost):
            await running

    play(scenario, work=False)


def test_a_result_that_is_queued_when_the_driver_failed_is_no_crash():
    """cut() and a result at the same time: the result is of a route that is gone, and what is raised is StageLost."""

    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        route.driver.submit(request("a", [1], 9))
        await turns()
        route.driver.cut("a node left")
        await route.one()
        with pytest.raises(StageLost):
            await running

    play(scenario, work=False)


def test_a_result_behind_a_broken_first_link_is_the_routes_end_and_no_bug() -> None:
    async def go() -> None:
        (first, stage), (last, results) = pair(), pair()
        driver = Driver(Scheduler(Limits(8, 16, 64, 4, 32, 8)), lambda timing: None)
        driver.submit(Request(RequestId("a"), [1, 2, 3], 8))
        driving = asyncio.ensure_future(driver.drive(pipeline.Route(1, first, results), [], lambda tokens: None))
        plan = messages.decode_plan(messages.decode_step((await stage.receive()).meta).plan)
        driver.cut("the route was abandoned")  # as the coordinator does; a result is under way
        await last.send(Frame(FrameKind.RESULT, 1, plan.step, messages.encode(StepResult(plan.step, [], []))))
        await last.close()
        await driving

    with pytest.raises(StageLost):
        asyncio.run(go())
