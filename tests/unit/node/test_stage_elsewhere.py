"""A stage asks experts elsewhere for its steps, and a step that ends early computes nothing from what it did not get."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from shoal.errors import LocalProtocolError
from shoal.executor.base import Collect, Partial, Program, Send, StageOutput
from shoal.node.stage_service import ExpertAsker, StageService
from shoal.scheduler.plan import Chunk, StepPlan
from shoal.transport.memory import MemoryStream, pair
from shoal.wire import messages
from shoal.wire.frame import Frame, FrameKind, WireCodec
from tests.support.routed_rows import routed_of

SENT = Send(routed_of([{1: 1.0}]), np.zeros(1, np.int32))
GOT = [Partial(SENT.routed.experts, SENT.rows, np.ones((1, 32)))]


class TwoLayered:
    """An executor whose steps need experts elsewhere in two layers."""

    nbytes, runtime, hidden = 0, "two layers", 8

    def __init__(self) -> None:
        self.answers: list[list[Partial]] = []
        self.ended = False

    def program(self, plan: StepPlan, hidden: Any) -> Program[StageOutput]:
        try:
            for _ in range(2):
                for asked in (SENT, Collect()):
                    self.answers.append((yield asked))
            return StageOutput(np.zeros((1, 8), np.float32), [], (0, 0, 0))
        finally:
            self.ended = True


class Noting:
    def __init__(self, before: Callable[[str], None]) -> None:
        self.noted: list[str] = []
        self._before = before

    def _note(self, what: str) -> None:
        self.noted.append(what)
        self._before(what)

    async def send(self, asked: Send) -> None:
        assert asked is SENT
        self._note("send")

    async def collect(self) -> list[Partial]:
        self._note("collect")
        return GOT

    def forget(self) -> None:
        self.noted.append("forget")


async def compute(work: Callable[[], Any], size: int) -> Any:
    return work()


def step_of(elsewhere: ExpertAsker | None) -> tuple[TwoLayered, StageService, Callable[[], Awaitable[None]], MemoryStream]:
    """An executor, its stage, what serves it one step, and where the result goes."""
    executor = TwoLayered()
    service = StageService(executor, epoch=1, stage=0, stages=2, wire_codec=WireCodec.RAW, compute=compute, elsewhere=elsewhere)
    (before, upstream), (downstream, after) = pair(), pair()
    service.link(downstream)

    async def serve() -> None:
        plan = StepPlan(0, [], [], [], [], [Chunk(7, 0, [1], [0], True)])
        await before.send(Frame(FrameKind.STEP, 1, 0, messages.encode(messages.Step(messages.raw(plan), [], []))))
        await before.close()
        await service.serve(upstream)

    return executor, service, serve, after


def test_a_step_is_given_what_came_of_what_it_sent() -> None:
    async def whole() -> None:
        elsewhere = Noting(lambda what: None)
        executor, _, serve, after = step_of(elsewhere)
        with pytest.raises(EOFError):
            await serve()
        assert (await after.receive()).kind is FrameKind.STEP
        assert elsewhere.noted == ["send", "collect"] * 2
        assert executor.answers == [[], GOT] * 2

    asyncio.run(whole())


def test_a_stage_that_is_closed_between_two_parts_of_a_step_goes_no_further() -> None:
    """What was sent is forgotten then, and the rest of the step would write wrong keys and values."""

    async def whole() -> None:
        elsewhere = Noting(lambda what: service.close() if len(elsewhere.noted) == 3 else None)
        executor, service, serve, _ = step_of(elsewhere)
        with pytest.raises(ConnectionError):
            await serve()
        assert elsewhere.noted == ["send", "collect", "send", "forget"]
        assert executor.answers == [[], GOT, []] and executor.ended

    asyncio.run(whole())


def test_a_step_that_fails_elsewhere_is_closed_and_told() -> None:
    async def whole() -> None:
        def fail(what: str) -> None:
            if what == "collect":
                raise ValueError("nobody has it")

        executor, _, serve, after = step_of(Noting(fail))
        with pytest.raises(ValueError, match="nobody has it"):
            await serve()
        assert messages.decode_error((await after.receive()).meta).message == "nobody has it"
        assert executor.ended

    asyncio.run(whole())


def test_a_stage_that_was_not_told_whom_to_ask_says_so() -> None:
    async def whole() -> None:
        executor, _, serve, _ = step_of(None)
        with pytest.raises(LocalProtocolError, match="was not told where"):
            await serve()
        assert executor.ended

    asyncio.run(whole())
