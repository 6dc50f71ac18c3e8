"""Sends steps into the pipeline and hands results to the requests that wait for them.

With S stages it keeps up to S + 1 steps in flight: one in every stage, and one on its way, so that the first stage gets it as
soon as it is free. The scheduler spreads samples over S steps.

Requests outlive routes. When a route breaks, or is replaced by a better one, they wait. On the next route the scheduler goes
back to the last confirmed results, the lost keys and values are refilled, and the steps go on from there. A token is delivered
once, when its result is applied, and is never taken back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from time import perf_counter
from typing import Any, NoReturn

from shoal.errors import ClusterError, InvalidRequest, RemoteProtocolError, ShoalError, StageLost, StepFailed
from shoal.pipeline.route import DrivenRoute, Route
from shoal.pipeline.timing import StepPart, StepTiming, Timings
from shoal.pipeline.token_stream import TokenStream
from shoal.request import Request, RequestId, TokenChunk
from shoal.scheduler.limits import Limits
from shoal.scheduler.scheduler import Scheduler
from shoal.wire import messages
from shoal.wire.frame import Frame

_STRIKES = 3  # failed steps of a request before it counts as the cause


class Driver:
    """The requests of a model, driven over one route after another."""

    def __init__(
        self,
        scheduler: Scheduler,
        observe: Callable[[StepTiming], None],
        sampled: Callable[[list[TokenChunk]], None] = lambda chunks: None,
        clock: Callable[[], float] = perf_counter,
        failed: Callable[[RequestId, ShoalError], None] = lambda request, error: None,
        ended: Callable[[RequestId, int], None] = lambda request, choice: None,
        hand_out: Callable[[Callable[[], None]], None] = lambda deliver: deliver(),
    ) -> None:
        """sampled: called with the tokens of each step before the streams get them. clock: seconds, the same clock as in the
        stages' traces. failed: called with requests that end with an error; ended: with choices that their reader ends, because
        their text is complete. hand_out: is given what hands the tokens of a step to the streams, and calls it when they may have them, in
        order."""
        self.scheduler = scheduler
        self.timings = Timings()
        self._observe, self._sampled, self._clock = observe, sampled, clock
        self._failed, self._ended, self._hand_out = failed, ended, hand_out
        self._streams: dict[RequestId, TokenStream] = {}
        self._strikes: dict[RequestId, int] = {}
        self._route: DrivenRoute | None = None
        self._closed: ShoalError | None = None

    async def drive(self, route: Route, spans: list[tuple[int, int]], filled: Callable[[int], None]) -> None:
        """Serves over a route until it breaks, or until the steps in flight at a `pause` are done.

        spans: layers whose keys and values are refilled first; then `filled` is called with the number of refilled tokens.
        Raises StageLost if the route breaks; the requests wait for the next one.
        """
        self.scheduler.rewind()
        loop = asyncio.get_running_loop()
        mine = self._route = DrivenRoute(route, self._clock)
        work = (self._run(mine, spans, filled), self._follow(mine), mine.watch_first(), mine.cut.wait(), mine.settled.wait())
        ends: list[asyncio.Task[Any]] = [loop.create_task(part) for part in work]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                if end.done():
                    end.result()
            if mine.cut.is_set():
                raise StageLost(f"the route was abandoned: {mine.why}")
        except StepFailed as error:
            self._strike(mine, error)
            raise
        except (OSError, EOFError, RemoteProtocolError) as error:
            raise StageLost(f"the route broke: {str(error) or type(error).__name__}") from error
        finally:
            self._route = None
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
            route.first.abort()
            route.last.abort()

    def _strike(self, route: DrivenRoute, error: StepFailed) -> None:
        """Counts a failed step against its requests, which then run alone. A request that keeps failing, finally alone, is
        ended: it would break every later route."""
        step = route.flight.get(error.step)
        found = {self.scheduler.request_of(chunk.sequence) for chunk in (step.plan.chunks if step is not None else ())}
        requests = {request for request in found if request is not None and request in self._streams}
        self.scheduler.apart |= requests
        for request in requests:
            self._strikes[request] = self._strikes.get(request, 0) + 1
            if self._strikes[request] >= _STRIKES and len(requests) == 1:
                self._end(request, StageLost(f"the model could not run this request: {error}"))

    def _end(self, request: RequestId, error: ShoalError) -> None:
        self._tell(request, error)
        self.scheduler.cancel(request)

    def _tell(self, request: RequestId, error: ShoalError) -> None:
        if (stream := self._streams.get(request)) is not None:
            stream.put(error)
            self._failed(request, error)

    def _fail(self, sequence: int, error: ShoalError) -> None:
        """Ends the request of a sequence for which the last stage reported a fault."""
        if (request := self.scheduler.request_of(sequence)) is not None:
            self._end(request, error)

    def stalled(self) -> float:
        """Seconds since the last result, while steps are in flight; else 0."""
        route = self._route
        return asyncio.get_running_loop().time() - route.heard if route is not None and route.flight else 0.0

    def cut(self, reason: str) -> None:
        """Abandons the route at once: no more of its results are accepted."""
        if self._route is not None:
            self._route.why = reason
            self._route.cut.set()

    def pause(self) -> None:
        """Sends no more steps; `drive` returns when the steps in flight are done."""
        if self._route is not None:
            self._route.pausing = True
            self._route.settle()

    def restart(self, limits: Limits) -> None:
        """Call it between routes: adopts the limits of the next one. Requests that do not fit its KV pool end with an error."""
        self.scheduler.rewind()
        for request in self.scheduler.restart(limits):
            why = f"nodes were lost, and the remaining ones have room for sequences of at most {limits.longest} tokens"
            self._tell(request, StageLost(why))

    def end_all(self, error: ShoalError) -> None:
        """Ends every request with an error."""
        for request in self._streams:
            self.scheduler.cancel(request)
            self._tell(request, error)

    def close(self, error: ShoalError) -> None:
        """Ends every request; no more can be submitted."""
        self._closed = error
        self.cut(str(error))
        self.end_all(error)

    def submit(self, request: Request) -> TokenStream:
        """Queues a request; it waits while there is no route. Raises InvalidRequest, QueueFull, or the error that closed the driver."""
        if self._closed is not None:
            raise self._closed
        self.scheduler.add(request, now=self._clock())
        stream = TokenStream(request)
        self._own(stream)
        return stream

    def take_up(self, stream: TokenStream) -> None:
        """Continues a request that began before this driver. If it cannot run here, it ends with the reason."""
        if not stream.left:
            return
        try:
            self.scheduler.add(stream.request, stream.left)
        except ShoalError as error:
            stream.put(error)
            return
        self._own(stream)

    def hand_over(self) -> list[TokenStream]:
        """Gives up the requests that another driver can take up; each of them goes on after the tokens that it has. One that was told anything
        of its prompt stays: that is said once. Call it between routes."""
        self.scheduler.rewind()
        out: list[TokenStream] = []
        for request, stream in [*self._streams.items()]:
            if (left := self.scheduler.generated(request)) is not None:
                stream.left = left
                del self._streams[request]
                self._strikes.pop(request, None)
                self.scheduler.cancel(request)
                out.append(stream)
        return out

    def _own(self, stream: TokenStream) -> None:
        self._streams[stream.request.id] = stream
        stream.driven(self)
        self.nudge()

    @property
    def requests(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    def forget(self, request: RequestId) -> None:
        """Ends what remains of a request."""
        self._strikes.pop(request, None)
        if self._streams.pop(request, None) is not None:
            self.scheduler.cancel(request)
            self.nudge()

    def cancel(self, request: RequestId, choice: int) -> None:
        """Ends one choice of a request: its text is complete."""
        self._ended(request, choice)
        self.scheduler.cancel(request, choice)
        self.nudge()

    def nudge(self) -> None:
        """Wakes the sender, because something came or ended."""
        if self._route is not None:
            self._route.nudged.set()

    async def _run(self, route: DrivenRoute, spans: list[tuple[int, int]], filled: Callable[[int], None]) -> NoReturn:
        filled(await self._refill(route, spans) if spans else 0)
        route.open = True
        await self._fill(route)
        while True:
            self._take(route, *await route.receive())
            await self._fill(route)

    async def _follow(self, route: DrivenRoute) -> NoReturn:
        looked = self._clock()
        while True:
            due = self.scheduler.due
            # What was due at the last look waits for the route to open, or to have room for a step, and not for a time.
            wait = max(due - self._clock(), 0.0) if due is not None and due > looked else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await route.nudged.wait()
            route.nudged.clear()
            looked = self._clock()
            await self._fill(route)

    async def _refill(self, route: DrivenRoute, spans: list[tuple[int, int]]) -> int:
        """Refills layers; if a journal does not hold all that is needed, from the tokens. Returns how many tokens were refilled."""
        tokens = 0
        only: set[int] | None = None
        while True:
            missing: set[int] = set()
            plans = self.scheduler.refill(spans, only, missing)
            more = True
            while more or route.flight:
                while more and len(route.flight) <= self.scheduler.limits.depth:
                    if (plan := next(plans, None)) is None:
                        more = False
                        break
                    tokens += plan.rows
                    await route.send(plan)
                if not route.flight:
                    break
                frame, _ = await route.receive()
                result = messages.decode_result(frame.meta)
                route.landed(result.step)
                missing.update(result.missing)
                self.scheduler.degraded(result)
            if not missing:
                return tokens
            if spans[0][0] == 0 and len(spans) == 1:
                raise RemoteProtocolError("layers could not be refilled from the tokens")
            # A journal lacks some rows: these sequences are refilled from the tokens, through all layers up to the last lost one.
            only, spans = missing, [(0, spans[-1][1])]

    def _take(self, route: DrivenRoute, frame: Frame, arrived: float) -> None:
        result = messages.decode_result(frame.meta)
        step = route.landed(result.step)
        for sampled in result.sampled:
            if sampled.fault:
                self._fail(sampled.sequence, ClusterError(sampled.fault) if sampled.ours else InvalidRequest(sampled.fault))
        for examined in result.examined:
            if examined.fault:
                self._fail(examined.sequence, ClusterError(examined.fault))
        rows: dict[RequestId, int] = {}
        for chunk in step.plan.chunks:
            if (request := self.scheduler.request_of(chunk.sequence)) is not None:
                rows[request] = rows.get(request, 0) + len(chunk.tokens)
        chunks = self.scheduler.apply(result, arrived - step.sent)
        tokens = Counter(chunk.request for chunk in chunks if chunk.counts)
        self._sampled(chunks)
        told = [(stream, chunk) for chunk in chunks if (stream := self._streams.get(chunk.request)) is not None]
        self._hand_out(lambda: _deliver(told))
        timing = StepTiming(
            step.plan.rows,
            len(result.sampled),
            step.schedule,
            step.encode,
            step.send,
            arrived - step.sent,
            self._clock() - arrived,
            tuple(result.traces),
            result.step,
            route.epoch,
            step.sent,
            tuple(StepPart(request, count, tokens[request]) for request, count in rows.items()),
        )
        self.timings.add(timing)
        self._observe(timing)

    async def _fill(self, route: DrivenRoute) -> None:
        """Sends steps while there is something to run and room in the pipeline."""
        async with route.filling:
            while route.open and not route.pausing and not route.cut.is_set() and len(route.flight) <= self.scheduler.limits.depth:
                began = self._clock()
                plan = self.scheduler.schedule(began)
                if plan is None:
                    break
                try:
                    await route.send(plan, self._clock() - began)
                except OSError as error:
                    route.why = f"the first stage is gone: {error}"
                    route.cut.set()
            route.settle()


def _deliver(told: list[tuple[TokenStream, TokenChunk]]) -> None:
    for stream, chunk in told:
        stream.put(chunk)
