"""A path through the stages, and the steps in flight on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from shoal.errors import RemoteProtocolError, StepFailed
from shoal.scheduler.plan import StepPlan
from shoal.transport.base import FrameStream
from shoal.wire import messages
from shoal.wire.frame import Frame, FrameKind


@dataclass(frozen=True)
class Route:
    """One epoch's path through the stages. `first` feeds stage 0; `last` delivers the last stage's results."""

    epoch: int
    first: FrameStream
    last: FrameStream


@dataclass
class StepInFlight:
    plan: StepPlan
    schedule: float
    encode: float
    send: float
    sent: float


class DrivenRoute:
    """A route while the driver uses it."""

    def __init__(self, route: Route, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.flight: dict[int, StepInFlight] = {}
        self.filling = asyncio.Lock()
        self.cut = asyncio.Event()
        self.settled = asyncio.Event()
        self.nudged = asyncio.Event()
        """Set when something came or ended: there may be a step to send."""
        self.why = ""
        self.open = self.pausing = False
        self.heard = 0.0
        self._landed = -1
        self._route = route

    @property
    def epoch(self) -> int:
        return self._route.epoch

    def settle(self) -> None:
        if self.pausing and self.open and not self.flight:
            self.settled.set()

    async def watch_first(self) -> None:
        """Watches the link to the first stage, which never sends on it: only the end of the link is news."""
        frame = await self._route.first.receive()
        raise RemoteProtocolError(f"stage 0 sent a {frame.kind.name} frame to the head")

    async def send(self, plan: StepPlan, schedule: float = 0.0) -> None:
        began = self._clock()
        meta = messages.encode(messages.Step(messages.raw(plan), []))
        encoded = self._clock()
        step = StepInFlight(plan, schedule, encoded - began, 0.0, encoded)
        if not self.flight:
            self.heard = asyncio.get_running_loop().time()
        self.flight[plan.step] = step
        await self._route.first.send(Frame(FrameKind.STEP, self._route.epoch, plan.step, meta))
        step.send = self._clock() - encoded
        step.sent += step.send

    async def receive(self) -> tuple[Frame, float]:
        """The next result of this epoch, and when it arrived. Raises RemoteProtocolError for a fault that a stage reports, or a
        result that cannot be."""
        while True:
            frame = await self._route.last.receive()
            if frame.epoch != self._route.epoch:
                continue  # from a route that is gone
            if frame.kind is FrameKind.ERROR:
                error = messages.decode_error(frame.meta)
                raise StepFailed(error.stage, error.message, frame.step)
            if frame.kind is not FrameKind.RESULT:
                raise RemoteProtocolError(f"a {frame.kind.name} frame where a result was expected")
            if frame.step <= self._landed:
                continue  # a duplicate
            return frame, self._clock()

    def landed(self, step: int) -> StepInFlight:
        """Takes the step of a result. Results come in the order of the steps. Raises RemoteProtocolError for one that does not."""
        if not self.flight or step != min(self.flight):
            raise RemoteProtocolError(f"a result of step {step}, which is not the next one in flight")
        self._landed = step
        self.heard = asyncio.get_running_loop().time()
        return self.flight.pop(step)
