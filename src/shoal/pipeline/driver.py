"""Sends steps into the pipeline and hands results to the requests that wait for them.

With S stages it keeps up to S + 1 steps in flight: one in every stage, and one on its way so that the first stage finds it
when it is done. The scheduler spreads draws over S steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from shoal.errors import RemoteProtocolError, ShoalError, StageLost
from shoal.pipeline.timing import StepTiming, Timings
from shoal.request import Request, RequestId, TokenChunk
from shoal.scheduler.plan import StepPlan
from shoal.scheduler.scheduler import Scheduler
from shoal.transport.base import FrameStream
from shoal.wire import messages
from shoal.wire.frame import Frame, Kind


@dataclass
class _InFlight:
    plan: StepPlan
    schedule: float
    encode: float
    send: float
    sent: float


class TokenStream:
    """The tokens of one request as they are drawn; close it to cancel what is left."""

    def __init__(self, driver: Driver, request: Request) -> None:
        self._driver, self._request = driver, request
        self._items: asyncio.Queue[TokenChunk | ShoalError | None] = asyncio.Queue()
        self._open = set(range(request.n))

    def put(self, item: TokenChunk | ShoalError) -> None:
        self._items.put_nowait(item)

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> TokenChunk:
        """Raises StageLost where the route breaks on the way."""
        while self._open:
            item = await self._items.get()
            if isinstance(item, ShoalError):
                self.close()
                raise item
            if item is None or item.choice not in self._open:
                continue  # closed, or of a choice that was ended from this side
            if item.finish is not None:
                self._open.discard(item.choice)
            return item
        self.close()
        raise StopAsyncIteration

    def end_choice(self, choice: int) -> None:
        """Ends one choice from this side; no chunk of it comes any more."""
        self._open.discard(choice)
        self._driver.cancel(self._request.id, choice)

    def close(self) -> None:
        """Cancels what is left; whoever waits for a chunk learns that none will come."""
        self._open.clear()
        self._items.put_nowait(None)
        self._driver.forget(self._request.id)


class Driver:
    """One route, served until it breaks. `first` feeds stage 0, `last` brings the last stage's results."""

    def __init__(
        self, scheduler: Scheduler, first: FrameStream, last: FrameStream, epoch: int, observe: Callable[[StepTiming], None]
    ) -> None:
        self.scheduler = scheduler
        self.timings = Timings()
        self._first, self._last, self._epoch, self._observe = first, last, epoch, observe
        self._streams: dict[RequestId, TokenStream] = {}
        self._flight: dict[int, _InFlight] = {}
        self._filling = asyncio.Lock()
        self._failure: ShoalError | None = None
        self._broken = asyncio.Event()
        self._nudge: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Takes results until the route breaks at either end. Raises StageLost, having told every request."""
        loop = asyncio.get_running_loop()
        ends = {loop.create_task(end) for end in (self._take_results(), self._watch_first(), self._watch_failure())}
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in done:
                end.result()
        except (OSError, EOFError, RemoteProtocolError) as error:
            raise StageLost(f"the route broke: {error}") from error
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
            if self._nudge is not None:
                self._nudge.cancel()
            self.fail(StageLost("a node that held a part of the model was lost; send the request again"))
            self._first.abort()
            self._last.abort()

    async def _take_results(self) -> None:
        while True:
            self._take(await self._last.receive())
            await self._fill()

    async def _watch_first(self) -> None:
        """The first stage never speaks on its link; only the link's end is news."""
        frame = await self._first.receive()
        raise RemoteProtocolError(f"stage 0 sent a {frame.kind.name} frame to the head")

    async def _watch_failure(self) -> None:
        await self._broken.wait()
        raise StageLost(str(self._failure))

    def fail(self, error: ShoalError) -> None:
        """Ends every request with an error; nothing can be submitted any more."""
        if self._failure is None:
            self._failure = error
            self._broken.set()
        self.scheduler.abandon()
        self._flight.clear()
        for stream in self._streams.values():
            stream.put(error)

    def submit(self, request: Request) -> TokenStream:
        """Queues a request. Raises InvalidRequest, QueueFull, and what broke the route where it is broken."""
        if self._failure is not None:
            raise self._failure
        self.scheduler.add(request)
        stream = TokenStream(self, request)
        self._streams[request.id] = stream
        self.nudge()
        return stream

    def forget(self, request: RequestId) -> None:
        """Ends what is left of a request."""
        if self._streams.pop(request, None) is not None and self._failure is None:
            self.scheduler.cancel(request)
            self.nudge()

    def cancel(self, request: RequestId, choice: int) -> None:
        """Ends one choice of a request."""
        if self._failure is None:
            self.scheduler.cancel(request, choice)
            self.nudge()

    def nudge(self) -> None:
        """Sends steps soon, because something came or ended."""
        if self._nudge is None or self._nudge.done():
            self._nudge = asyncio.get_running_loop().create_task(self._fill())

    def _take(self, frame: Frame) -> None:
        arrived = perf_counter()
        if frame.epoch != self._epoch or self._failure is not None:
            return  # of a route that is gone
        if frame.kind is Kind.ERROR:
            error = messages.decode_error(frame.meta)
            raise RemoteProtocolError(f"stage {error.stage}: {error.message}")
        if frame.kind is not Kind.RESULT:
            raise RemoteProtocolError(f"a {frame.kind.name} frame where a result was due")
        result = messages.decode_result(frame.meta)
        step = self._flight.pop(result.step, None)
        if step is None:
            raise RemoteProtocolError(f"a result of step {result.step}, which is not in flight")
        chunks = self.scheduler.apply(result)
        for chunk in chunks:
            if (stream := self._streams.get(chunk.request)) is not None:
                stream.put(chunk)
        timing = StepTiming(
            step.plan.rows,
            len(result.sampled),
            step.schedule,
            step.encode,
            step.send,
            arrived - step.sent,
            perf_counter() - arrived,
            tuple(result.traces),
        )
        self.timings.add(timing)
        self._observe(timing)

    async def _fill(self) -> None:
        """Sends steps while there is something to run and room in the pipe."""
        async with self._filling:
            while self._failure is None and len(self._flight) <= self.scheduler.limits.depth:
                began = perf_counter()
                plan = self.scheduler.schedule()
                if plan is None:
                    return
                scheduled = perf_counter()
                meta = messages.encode(messages.Step(messages.raw(plan), []))
                encoded = perf_counter()
                step = _InFlight(plan, scheduled - began, encoded - scheduled, 0.0, encoded)
                self._flight[plan.step] = step
                try:
                    await self._first.send(Frame(Kind.STEP, self._epoch, plan.step, meta))
                except OSError as error:
                    self.fail(StageLost(f"the first stage is gone: {error}"))
                    return
                step.send = perf_counter() - encoded
                step.sent += step.send
