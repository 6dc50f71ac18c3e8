"""A stage takes each step once and in order, from one route alone, and stops at once when its epoch is over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import numpy as np
import pytest

from shoal.errors import ClusterError, RemoteProtocolError
from shoal.executor.base import Program, StageOutput
from shoal.node.stage_service import StageService
from shoal.scheduler.plan import Chunk, Sampled, StepPlan
from shoal.transport.memory import MemoryStream, pair
from shoal.wire import messages
from shoal.wire.frame import Frame, FrameKind, WireCodec

EPOCH, HIDDEN = 4, 8


class Counting:
    """An executor that adds one."""

    nbytes, runtime, hidden = 0, "counting", HIDDEN

    def __init__(self) -> None:
        self.plans: list[StepPlan] = []
        self.began, self.may_end = Event(), Event()
        self.may_end.set()
        self.missing: tuple[int, ...] = ()
        self.inputs: list[np.ndarray | None] = []

    def program(self, plan: StepPlan, hidden: np.ndarray | None) -> Program[StageOutput]:
        yield from ()
        self.began.set()
        assert self.may_end.wait(5)
        self.plans.append(plan)
        self.inputs.append(hidden)
        out = np.full((plan.rows, HIDDEN), 1 if hidden is None else hidden[0, 0] + 1, np.float32)
        return StageOutput(out, [Sampled(7, 9)], (0, 0, 0), self.missing)


class Bench:
    def __init__(self, stage: int = 1, stages: int = 3) -> None:
        self.executor = Counting()
        self.pool = ThreadPoolExecutor(1)
        self.service = StageService(self.executor, epoch=EPOCH, stage=stage, stages=stages, wire_codec=WireCodec.RAW, compute=self.compute)
        (self.before, self.upstream), (downstream, self.after) = pair(), pair()
        self.service.link(downstream)

    async def compute(self, work: Callable[[], Any], size: int) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)

    async def send(self, step: int, epoch: int = EPOCH, spans: list[tuple[int, int]] | None = None, body: bool = True) -> None:
        plan = StepPlan(step, [], [], [], [], [Chunk(7, 0, [1, 2], [0], True)], spans or [])
        meta = messages.encode(messages.Step(messages.raw(plan), [], [3] if spans else []))
        await self.before.send(Frame(FrameKind.STEP, epoch, step, meta, np.ones((2, HIDDEN), np.float32).tobytes() if body else b""))

    async def received(self) -> list[Frame]:
        """What the next stage got until the link ended."""
        frames: list[Frame] = []
        while True:
            try:
                frames.append(await self.after.receive())
            except (EOFError, ConnectionError):
                return frames


def play(scenario: Callable[[Bench, asyncio.Task[None]], Awaitable[None]], **options: int) -> None:
    async def whole() -> None:
        bench = Bench(**options)
        serving = asyncio.ensure_future(bench.service.serve(bench.upstream))
        try:
            async with asyncio.timeout(5):
                await scenario(bench, serving)
        finally:
            serving.cancel()
            bench.executor.may_end.set()
            await asyncio.gather(serving, return_exceptions=True)
            bench.pool.shutdown()

    asyncio.run(whole())


def test_steps_are_run_in_order_and_handed_on():
    async def scenario(bench: Bench, serving: asyncio.Task[None]) -> None:
        for step in (41, 42):
            await bench.send(step)
        frames = [await bench.after.receive() for _ in range(2)]
        assert [(f.kind, f.epoch, f.step) for f in frames] == [(FrameKind.STEP, EPOCH, 41), (FrameKind.STEP, EPOCH, 42)]
        assert (np.frombuffer(frames[0].body, np.float32) == 2).all()
        assert bench.service.steps == 2

    play(scenario)


def test_a_step_that_comes_twice_is_run_once():
    async def scenario(bench: Bench, serving: asyncio.Task[None]) -> None:
        for step in (5, 5, 6, 5, 6, 7):
            await bench.send(step)
        assert [(await bench.after.receive()).step for _ in range(3)] == [5, 6, 7]
        await bench.before.close()
        assert await bench.received() == []
        assert [plan.step for plan in bench.executor.plans] == [5, 6, 7]

    play(scenario)


def test_a_gap_ends_the_link_and_that_of_the_next_stage():
    async def scenario(bench: Bench, serving: asyncio.Task[None]) -> None:
        for step in (5, 7):
            await bench.send(step)
        with pytest.raises(RemoteProtocolError, match="steps in between were lost"):
            await serving
        assert [f.step for f in await bench.received()] == [5]
        assert not bench.service.served

    play(scenario)


def test_frames_of_other_epochs_are_dropped():
    async def scenario(bench: Bench, serving: asyncio.Task[None]) -> None:
        await bench.send(5, EPOCH - 1)
        await bench.send(9, EPOCH + 1)
        await bench.send(5)
        assert (await bench.after.receive()).step == 5
        assert [plan.step for plan in bench.executor.plans] == [5]

    play(scenario)


def test_what_is_no_step_ends_the_link():
    async def scenario(bench: Bench, serving: asyncio.Task[None]) -> None:
        await bench.before.send(Frame(FrameKind.RESULT, EPOCH, 1))
        with pytest.raises(RemoteProtocolError, match="RESULT"):
            await serving

    play(scenario)


def test_the_end_of_the_stage_before_ends_the_link_to_the_next():
    async def scenario(bench: Bench, serving: asyncio.Task[None]) -> None:
        await bench.send(5)
        await bench.after.receive()
        await bench.before.close()
        with pytest.raises(EOFError):
            await serving
        assert await bench.received() == []

    play(scenario)


def test_a_stage_that_is_closed_while_a_step_runs_says_nothing_more():
    async def scenario(bench: Bench, serving: asyncio.Task[None]) -> None:
        bench.executor.may_end.clear()
        await bench.send(5)
        await asyncio.get_running_loop().run_in_executor(None, bench.executor.began.wait)
        bench.service.close()
        bench.executor.may_end.set()
        with pytest.raises(ConnectionError):
            await serving
        assert await bench.received() == []
        assert len(bench.executor.plans) == 1, "the step came to its end"

    play(scenario)


def test_a_stage_that_is_closed_runs_none_of_the_steps_that_wait():
    async def scenario(bench: Bench, serving: asyncio.Task[None]) -> None:
        bench.executor.may_end.clear()
        for step in (5, 6, 7):
            await bench.send(step)
        await asyncio.get_running_loop().run_in_executor(None, bench.executor.began.wait)
        bench.service.close()
        bench.executor.may_end.set()
        await asyncio.wait({serving})
        assert [plan.step for plan in bench.executor.plans] == [5]

    play(scenario)


def test_a_link_that_comes_after_the_end_is_refused_and_closed():
    async def scenario(bench: Bench, serving: asyncio.Task[None]) -> None:
        bench.service.close()
        late, other = pair()
        with pytest.raises(ConnectionError, match="over"):
            bench.service.link(late)
        with pytest.raises(ConnectionError):
            await other.receive()

    play(scenario)


@pytest.mark.parametrize("body", [True, False])
def test_a_refilling_step_passes_on_what_is_missing_and_may_carry_nothing(body: bool):
    async def scenario(bench: Bench, serving: asyncio.Task[None]) -> None:
        bench.executor.missing = (7,)
        await bench.send(5, spans=[(2, 4)], body=body)
        frame = await bench.after.receive()
        assert messages.decode_step(frame.meta).missing == [3, 7]
        (given,) = bench.executor.inputs
        assert (given is not None) == body

    play(scenario)


def test_the_last_stage_answers_with_a_result():
    async def scenario(bench: Bench, serving: asyncio.Task[None]) -> None:
        await bench.send(5, spans=[(2, 4)])
        frame = await bench.after.receive()
        result = messages.decode_result(frame.meta)
        assert (frame.kind, frame.step, result.step, result.missing, len(result.traces)) == (FrameKind.RESULT, 5, 5, [3], 1)
        assert [s.token for s in result.sampled] == [9]

    play(scenario, stage=2)


def test_a_step_without_its_activations_is_told_to_the_head():
    async def scenario(bench: Bench, serving: asyncio.Task[None]) -> None:
        await bench.send(5, body=False)
        frame = await bench.after.receive()
        assert (frame.kind, frame.step) == (FrameKind.ERROR, 5)
        with pytest.raises(RemoteProtocolError):
            await serving

    play(scenario)


def test_a_stage_that_is_not_linked_runs_nothing():
    async def whole() -> None:
        bench = Bench()
        bench.service = StageService(bench.executor, epoch=EPOCH, stage=1, stages=3, wire_codec=WireCodec.RAW, compute=bench.compute)
        await bench.send(5)
        with pytest.raises((RemoteProtocolError, ClusterError), match="linked"):
            await bench.service.serve(bench.upstream)
        bench.pool.shutdown()

    asyncio.run(whole())


def test_a_next_stage_that_takes_no_more_does_not_outlive_the_end():
    """The next stage is frozen: sending waits, and closing ends the waiting."""

    async def scenario(bench: Bench, serving: asyncio.Task[None]) -> None:
        after: MemoryStream = bench.after
        for step in range(20):
            await bench.send(step)
        while len(after._frames) <= 16:  # noqa: ASYNC110 - it is full then
            await asyncio.sleep(0.001)
        bench.service.close()
        await asyncio.wait({serving})
        assert serving.done()

    play(scenario)
