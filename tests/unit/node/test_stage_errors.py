"""Frames that a stage cannot run: what the stages behind it hear."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from shoal.node.stage_service import StageService
from shoal.scheduler.plan import StepPlan
from shoal.transport.memory import pair
from shoal.wire import messages
from shoal.wire.frame import Frame, FrameKind, WireCodec


class Broken:
    nbytes, runtime, hidden = 0, "broken", 8

    def program(self, plan: StepPlan, hidden: object) -> Any:
        raise KeyError(plan.step)  # an executor's bug


async def compute(work: Callable[[], Any], size: int) -> Any:
    return work()


def service(stage: int) -> StageService:
    return StageService(Broken(), epoch=1, stage=stage, stages=2, wire_codec=WireCodec.RAW, compute=compute)


def step() -> Frame:
    plan = StepPlan(0, [], [], [], [], [])
    return Frame(FrameKind.STEP, 1, 0, messages.encode(messages.Step(messages.raw(plan), [])))


async def onward(frame: Frame, stage: int) -> Frame:
    """What a stage says to the one after it about a frame that it cannot run."""
    (before, upstream), (downstream, after) = pair(), pair()
    under_test = service(stage)
    under_test.link(downstream)
    await before.send(frame)
    serving = asyncio.ensure_future(under_test.serve(upstream))
    try:
        async with asyncio.timeout(2):
            return await after.receive()
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def test_an_executors_bug_reaches_the_head() -> None:
    assert asyncio.run(onward(step(), 0)).kind is FrameKind.ERROR


def test_an_error_of_the_stage_before_is_passed_on() -> None:
    error = Frame(FrameKind.ERROR, 1, 0, messages.encode(messages.Error("cannot", 0)))
    assert asyncio.run(onward(error, 1)).kind is FrameKind.ERROR
