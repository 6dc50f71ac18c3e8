"""A node's part in a route: takes steps from the stage before, runs them and passes them to the stage after."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from inspect import GEN_RUNNING, getgeneratorstate
from time import perf_counter
from typing import Protocol

from shoal.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from shoal.executor.base import Collect, Executor, Partial, Program, Send
from shoal.scheduler.plan import StageTrace, StepResult
from shoal.transport.base import FrameStream
from shoal.wire import codec, messages
from shoal.wire.frame import Dtype, Frame, FrameKind, WireCodec

Compute = Callable[[Callable[[], "Send | Collect | Frame"], int], Awaitable["Send | Collect | Frame"]]
"""Runs a part of a step of that many bytes: see Environment.step."""
Clock = Callable[[], float]


class ExpertAsker(Protocol):
    """Asks experts on other machines for a stage, one step at a time."""

    async def send(self, asked: Send) -> None: ...
    async def collect(self) -> list[Partial]:
        """What came of all that was sent. Raises ShoalError if something cannot be had."""
        ...

    def forget(self) -> None:
        """The step ends before it collects."""
        ...


class StageService:
    """One stage of one epoch."""

    def __init__(
        self,
        executor: Executor,
        *,
        epoch: int,
        stage: int,
        stages: int,
        wire_codec: WireCodec,
        compute: Compute,
        clock: Clock = perf_counter,
        elsewhere: ExpertAsker | None = None,
    ) -> None:
        """clock: seconds, on the same clock as the arrival times of frames. elsewhere: for steps that need experts of other machines."""
        self.epoch = epoch
        self.stage = stage
        self.stages = stages
        self.steps = 0
        self.executor = executor
        self._codec = wire_codec
        self._compute, self._clock, self._elsewhere = compute, clock, elsewhere
        self._upstream: FrameStream | None = None
        self._next: FrameStream | None = None
        self._latest: int | None = None
        self._closed = False

    @property
    def served(self) -> bool:
        """Whether the stage before is connected."""
        return self._upstream is not None

    @property
    def last(self) -> bool:
        return self.stage == self.stages - 1

    def link(self, stream: FrameStream) -> None:
        """Sets where results go. Raises ConnectionError if this stage is already closed."""
        if self._closed:
            stream.abort()
            raise ConnectionError(f"epoch {self.epoch} is over")
        self._next = stream

    async def serve(self, upstream: FrameStream) -> None:
        """Runs steps until the stage before hangs up. Raises EOFError, OSError, ProtocolError, and whatever a step raises."""
        self._upstream = upstream
        try:
            await self._serve(upstream)
        finally:  # a route with a gap is useless: let the rest of it, and the head, notice
            self._upstream = None
            if self._next is not None:
                await self._next.close()

    async def _serve(self, upstream: FrameStream) -> None:
        while not self._closed:
            frame = await upstream.receive()
            if frame.epoch != self.epoch:
                continue
            if frame.kind is FrameKind.ERROR and self._next is not None:
                await self._next.send(frame)  # a fault of a stage before this one: the head must learn of it
                continue
            if frame.kind is not FrameKind.STEP:
                raise RemoteProtocolError(f"a {frame.kind.name} frame where a step was expected")
            if self._latest is not None and frame.step <= self._latest:
                continue  # a duplicate
            if self._latest is not None and frame.step != self._latest + 1:
                raise RemoteProtocolError(f"step {frame.step} came after step {self._latest}: steps in between were lost")
            self._latest = frame.step
            if self._next is None:
                raise RemoteProtocolError("a step came before this stage was linked to the next")
            try:
                out = await self._step(frame, upstream.arrived)
            except Exception as error:
                told = messages.Error(str(error) or type(error).__name__, self.stage)
                await self._next.send(Frame(FrameKind.ERROR, self.epoch, frame.step, messages.encode(told)))
                raise
            self.steps += 1
            await self._next.send(out)

    async def _step(self, frame: Frame, arrived: float) -> Frame:
        if self._closed:
            raise ConnectionError(f"epoch {self.epoch} is over")
        program = self._program(frame, arrived)
        answer: list[Partial] | None = None
        try:
            while not isinstance(found := await self._compute(partial(_advanced, program, answer), frame.size), Frame):
                answer = await self._perform(found)
            return found
        finally:
            if getgeneratorstate(program) != GEN_RUNNING:  # otherwise this task was cancelled while a thread computes, which ends by itself
                program.close()  # where the step failed, or the stage ended, while it waited

    async def _perform(self, asked: Send | Collect) -> list[Partial]:
        if self._closed:  # what it sent is forgotten, so nothing that it computes from here on is right
            raise ConnectionError(f"epoch {self.epoch} is over")
        if self._elsewhere is None:
            raise LocalProtocolError("a step needs experts that run elsewhere, and this stage was not told where")
        if isinstance(asked, Collect):
            return await self._elsewhere.collect()
        await self._elsewhere.send(asked)
        return []

    def _program(self, frame: Frame, arrived: float) -> Program[Frame]:
        began = self._clock()
        step = messages.decode_step(frame.meta)
        plan = messages.decode_plan(step.plan)
        carries = self.stage and plan.chunks and (not plan.spans or len(frame.body))
        hidden = codec.decode(frame.codec, frame.body, plan.rows, self.executor.hidden) if carries else None
        decoded = self._clock()
        output = yield from self.executor.program(plan, hidden)
        computed = self._clock()
        body = b"" if output.hidden is None else codec.encode(self._codec, output.hidden)
        prepare, compute, sample = output.seconds
        encoded = self._clock() - computed
        trace = StageTrace(max(began - arrived, 0.0), decoded - began + prepare, compute, sample, encoded, arrived)
        traces, missing, degraded = [*step.traces, trace], [*step.missing, *output.missing], dict(step.degraded)
        for sequence, rows in output.degraded:
            degraded[sequence] = max(degraded.get(sequence, 0), rows)
        if self.last:
            result = StepResult(plan.step, output.sampled, traces, missing, list(output.examined), degraded)
            return Frame(FrameKind.RESULT, frame.epoch, frame.step, messages.encode(result))
        meta = messages.encode(messages.Step(step.plan, traces, missing, degraded))
        return Frame(FrameKind.STEP, frame.epoch, frame.step, meta, body, Dtype.FLOAT32, self._codec)

    def close(self) -> None:
        """Closes the links at once; a step that is running finishes, and its result goes nowhere."""
        self._closed = True
        if self._elsewhere is not None:
            self._elsewhere.forget()
        for stream in (self._upstream, self._next):
            if stream is not None:
                stream.abort()


def _advanced(program: Program[Frame], answer: list[Partial] | None) -> Send | Collect | Frame:
    try:
        return next(program) if answer is None else program.send(answer)
    except StopIteration as end:
        return end.value


def wire_codec(name: str) -> WireCodec:
    try:
        return WireCodec[name.upper()]
    except KeyError:
        raise ConfigError(f"there is no encoding of activations named '{name}'") from None
