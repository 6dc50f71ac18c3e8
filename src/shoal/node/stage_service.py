"""A node's part in a route: takes steps from the stage before, runs them, hands them to the stage after."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

from shoal import __version__
from shoal.errors import ConfigError, RemoteProtocolError, VersionMismatch
from shoal.executor.base import Executor
from shoal.node.probe import answer
from shoal.scheduler.plan import StageTrace, StepResult
from shoal.transport.base import FrameStream
from shoal.transport.tcp import connect
from shoal.wire import codec, messages
from shoal.wire.frame import Dtype, Frame, Kind, WireCodec

CONNECT_TIMEOUT = 10.0
_QUICK = 0.02  # seconds for which heartbeats and the like can wait


async def introduce(stream: FrameStream, epoch: int, hello: messages.Hello) -> None:
    """The connecting side's handshake. Raises RemoteProtocolError where the other side refuses."""
    await stream.send(Frame(Kind.HELLO, epoch, meta=messages.encode(hello)))
    async with asyncio.timeout(CONNECT_TIMEOUT):
        answer = await stream.receive()
    if answer.kind is Kind.ERROR:
        raise RemoteProtocolError(f"{stream.peer} refused the link: {messages.decode_error(answer.meta).message}")
    if answer.kind is not Kind.HELLO:
        raise RemoteProtocolError(f"{stream.peer} answered a greeting with {answer.kind.name}")


async def open_link(host: str, port: int, epoch: int, hello: messages.Hello) -> FrameStream:
    """Connects to the process that takes the next part of the route. Raises ConnectionError, TimeoutError, RemoteProtocolError."""
    stream = await connect(host, port, CONNECT_TIMEOUT)
    try:
        await introduce(stream, epoch, hello)
    except BaseException:
        stream.abort()
        raise
    return stream


async def greeted(stream: FrameStream) -> Frame:
    """The first frame of whoever connected; measurements are answered until they end. Raises EOFError, OSError, ProtocolError."""
    async with asyncio.timeout(CONNECT_TIMEOUT):
        greeting = await stream.receive()
    if greeting.kind is Kind.PING:
        await answer(stream, greeting)
    return greeting


async def accept_link(stream: FrameStream, greeting: Frame, epoch: int, cluster: str, stage: int, node: str) -> None:
    """The accepting side's handshake. Raises RemoteProtocolError, having told the other side, for a link that is not wanted here."""
    try:
        if greeting.kind is not Kind.HELLO:
            raise RemoteProtocolError(f"the first frame was {greeting.kind.name}, not HELLO")
        hello = messages.decode_hello(greeting.meta)
        if hello.version != __version__:
            raise VersionMismatch(hello.version, __version__)
        if stage < 0 or (hello.cluster, greeting.epoch, hello.stage) != (cluster, epoch, stage):
            raise RemoteProtocolError(f"this is stage {stage} of epoch {epoch}, not stage {hello.stage} of epoch {greeting.epoch}")
    except RemoteProtocolError as error:
        await stream.send(Frame(Kind.ERROR, epoch, meta=messages.encode(messages.Error(str(error), stage))))
        raise
    stream.trust()
    await stream.send(Frame(Kind.HELLO, epoch, meta=messages.encode(messages.Hello(__version__, cluster, node, stage))))


class StageService:
    """One loaded stage of one epoch."""

    def __init__(
        self, executor: Executor, *, epoch: int, stage: int, stages: int, hidden: int, wire_codec: WireCodec, pool: ThreadPoolExecutor
    ) -> None:
        self.epoch = epoch
        self.stage = stage
        self.stages = stages
        self.steps = 0
        self.executor = executor
        self._hidden = hidden
        self._codec = wire_codec
        self._pool = pool
        self._next: FrameStream | None = None
        self._quick = 0  # bytes of a step that was done in little time
        self._closed = False
        self.served = False
        """Whether the stage before is connected."""

    @property
    def last(self) -> bool:
        return self.stage == self.stages - 1

    def link(self, stream: FrameStream) -> None:
        self._next = stream

    async def serve(self, upstream: FrameStream) -> None:
        """Runs steps until the stage before hangs up. Raises ShoalError where a step cannot be run."""
        self.served = True
        try:
            await self._serve(upstream)
        finally:  # a route with a hole is of no use: let the rest of it, and the head, notice
            self.served = False
            if self._next is not None:
                await self._next.close()

    async def _serve(self, upstream: FrameStream) -> None:
        while not self._closed:
            frame = await upstream.receive()
            if frame.kind is Kind.ERROR and self._next is not None:
                await self._next.send(frame)  # of a stage before this one: the head is to know
                continue
            if frame.kind is not Kind.STEP:
                raise RemoteProtocolError(f"a {frame.kind.name} frame where a step was due")
            if frame.epoch != self.epoch:
                continue
            if self._next is None:
                raise RemoteProtocolError("a step came before this stage was linked to the next")
            try:
                out = await self._step(frame, upstream.arrived)
            except Exception as error:
                told = messages.Error(str(error) or type(error).__name__, self.stage)
                await self._next.send(Frame(Kind.ERROR, self.epoch, frame.step, messages.encode(told)))
                raise
            self.steps += 1
            await self._next.send(out)

    async def _step(self, frame: Frame, arrived: float) -> Frame:
        """Runs a step in the computing thread; right here where one of its size took no longer than changing threads is worth."""
        began = perf_counter()
        if frame.size <= self._quick:
            out = self._run(frame, arrived)
        else:
            out = await asyncio.get_running_loop().run_in_executor(self._pool, self._run, frame, arrived)
        self._quick = max(self._quick, frame.size) if perf_counter() - began < _QUICK else 0
        return out

    def _run(self, frame: Frame, arrived: float) -> Frame:
        began = perf_counter()
        step = messages.decode_step(frame.meta)
        plan = messages.decode_plan(step.plan)
        hidden = codec.decode(frame.codec, frame.body, plan.rows, self._hidden) if self.stage and plan.chunks else None
        decoded = perf_counter()
        output = self.executor.run(plan, hidden)
        computed = perf_counter()
        body = b"" if output.hidden is None else codec.encode(self._codec, output.hidden)
        prepare, compute, sample = output.seconds
        encoded = perf_counter() - computed
        trace = StageTrace(max(began - arrived, 0.0), decoded - began + prepare, compute, sample, encoded)
        traces = [*step.traces, trace]
        if self.last:
            return Frame(Kind.RESULT, frame.epoch, frame.step, messages.encode(StepResult(plan.step, output.sampled, traces)))
        meta = messages.encode(messages.Step(step.plan, traces))
        return Frame(Kind.STEP, frame.epoch, frame.step, meta, body, Dtype.FLOAT32, self._codec)

    async def close(self) -> None:
        """Ends the link onward and frees the stage once the step that runs, if any, is done."""
        self._closed = True
        if self._next is not None:
            self._next.abort()
        await asyncio.get_running_loop().run_in_executor(self._pool, self.executor.close)


def wire_codec(name: str) -> WireCodec:
    try:
        return WireCodec[name.upper()]
    except KeyError:
        raise ConfigError(f"no encoding of activations is called '{name}'") from None
