"""A stage's end of its conversations with workers that hold experts: who is asked, what came, and what to do if nothing does.

An answer that does not come is asked of a replica: when its worker's connection breaks, at once; when it is late, beside it, and the
first answer counts. No step waits for a worker to take what it is sent. Rows are the same whoever runs them, and so are the sums, so no
answer is wrong because another one came, too. Where nobody else has an expert, the step waits for its worker to come back, for a bounded
time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

import structlog

from shoal.control.messages import ExpertAsks
from shoal.errors import ClusterError, ProtocolError, RemoteProtocolError
from shoal.executor.base import Ints, Partial, Send
from shoal.node.expert_holders import ExpertHolder, Holders
from shoal.retry import Backoff
from shoal.transport.base import FrameStream
from shoal.wire import messages
from shoal.wire.frame import Frame, FrameKind
from shoal.wire.routed import Routed, Sums, SumsHeader, decode_sums

log = structlog.get_logger()

PATIENCE = 15.0
"""Seconds that a step waits for an expert that nobody has now."""
_DEADLINE = 5.0
"""Seconds after which a worker whose usual time is not known is late."""
_SOONEST = 0.01
"""Seconds before which nobody is late: to ask twice costs more than to wait so long."""
_FIRST_DELAY, _MOST_DELAY = 0.05, 2.0

Connect = Callable[[str], Awaitable[FrameStream]]
"""To a worker, by its name; both have introduced themselves. Raises OSError, EOFError, ProtocolError, TimeoutError."""


class _Lost(Exception):
    """A worker will not answer."""


@dataclass
class _Ask:
    """Experts that one worker was asked at first."""

    routed: Routed
    rows: Ints
    flights: dict[asyncio.Future[Sums], tuple[str, float]] = field(default_factory=dict[asyncio.Future[Sums], tuple[str, float]])
    """Who was asked, and when he is late."""
    asked: set[str] = field(default_factory=set[str])
    over: bool = False
    """Nobody waits for it any more."""


class ExpertLinks:
    """epoch: of the stage. clock: seconds. patience: seconds that a step waits for an expert that nobody has now. For one event loop."""

    def __init__(
        self, holders: Holders, connect: Connect, epoch: int, clock: Callable[[], float], rng: Random, patience: float = PATIENCE
    ) -> None:
        self.holders, self.tally = holders, ExpertAsks()
        self._connect, self._epoch, self._clock, self._rng, self._patience = connect, epoch, clock, rng, patience
        self._streams: dict[str, FrameStream] = {}
        self._answers: dict[int, tuple[asyncio.Future[Sums], str, Routed, float]] = {}
        """By number of the frame: who was asked for what, and when."""
        self._numbers = 0
        self._step: list[_Ask] = []
        """What the step under way has sent."""
        self._links: list[asyncio.Task[None]] = []
        self._sending: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        """A worker can be asked again, or was lost."""

    async def open(self) -> None:
        """Connects to all workers, and keeps connecting to those that it loses. Raises ClusterError if an expert has nobody who can be
        reached."""
        first = [asyncio.Event() for _ in self.holders]
        for worker, tried in zip(self.holders, first, strict=True):
            self.holders[worker].away = True
            self._links.append(asyncio.get_running_loop().create_task(self._keep_connected(worker, tried)))
        for tried in first:
            await tried.wait()
        for layer, experts in self.holders.experts.items():
            reached = {expert for some in self.holders.choose(layer, sorted(experts)).values() for expert in some}
            if lacking := experts - reached:
                raise ClusterError(f"nobody who can be reached holds expert {min(lacking)} of layer {layer}")

    async def close(self) -> None:
        self.forget()
        tasks = [*self._links, *self._sending]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def send(self, asked: Send) -> None:
        """Those that nobody can be asked for now are asked for by `collect`."""
        routed = asked.routed
        chosen = self.holders.choose(routed.layer, routed.experts.tolist())
        for worker, experts in chosen.items():
            part, rows = routed.only(experts)
            ask = _Ask(part, asked.rows[rows])
            self._step.append(ask)
            self._post(ask, worker)
        covered = {expert for experts in chosen.values() for expert in experts}
        if lacking := [expert for expert in routed.experts.tolist() if expert not in covered]:
            part, rows = routed.only(lacking)
            self._step.append(_Ask(part, asked.rows[rows]))

    async def collect(self) -> list[Partial]:
        """Raises ClusterError if an expert cannot be had, or the step is forgotten meanwhile."""
        began = self._clock()
        try:
            return [part for ask in list(self._step) for part in await self._settle(ask)]
        finally:
            self.forget()
            self.tally.waited += self._clock() - began

    def forget(self) -> None:
        """Answers that come later are dropped."""
        step, self._step = self._step, []
        for ask in step:
            ask.over = True
            for future in ask.flights:
                future.cancel()
        self._changed.set()

    def _post(self, ask: _Ask, worker: str) -> None:
        """Asks a worker. If its connection breaks, so does the flight."""
        holder, now = self.holders[worker], self._clock()
        future: asyncio.Future[Sums] = asyncio.get_running_loop().create_future()
        self._numbers += 1
        number = self._numbers
        self._answers[number] = (future, worker, ask.routed, now)
        usual = holder.late()
        ask.flights[future] = (worker, now + (_DEADLINE if usual is None else max(usual, _SOONEST)))
        ask.asked.add(worker)
        holder.outstanding += ask.routed.rows
        future.add_done_callback(partial(self._landed, number, holder, ask.routed.rows))
        frame = Frame(FrameKind.EXPERTS, self._epoch, number, *ask.routed.encode())
        self.tally.frames += 1
        self.tally.sent += frame.size
        try:
            if (stream := self._streams.get(worker)) is None:
                raise ConnectionError(f"{worker} is not connected")
            if stream.offer(frame):  # so it leaves before the stage goes on, which may be in this thread
                return
        except (ConnectionError, ProtocolError) as error:
            future.set_exception(_Lost(str(error)) if isinstance(error, ConnectionError) else error)
            return
        sending = asyncio.get_running_loop().create_task(self._hand_over(worker, frame, future))
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)

    async def _hand_over(self, worker: str, frame: Frame, future: asyncio.Future[Sums]) -> None:
        """To a worker that has to take something else before."""
        if future.done() and not future.cancelled():
            return  # the worker was lost
        stream = self._streams.get(worker)
        try:
            if stream is None:
                raise ConnectionError(f"{worker} is not connected")
            await stream.send(frame)
        except (ConnectionError, ProtocolError) as error:
            if not future.done():
                future.set_exception(_Lost(str(error)) if isinstance(error, ConnectionError) else error)

    def _landed(self, number: int, holder: ExpertHolder, rows: int, future: asyncio.Future[Sums]) -> None:
        unanswered = self._answers.pop(number, None) is not None
        holder.outstanding -= rows
        if not future.cancelled():
            future.exception()  # it was seen
        elif unanswered:
            holder.abandoned.add(number)

    async def _settle(self, ask: _Ask) -> list[Partial]:
        """Waits for an answer, asking whoever else has the experts where one is late or lost."""
        given_up: float | None = None
        while True:
            if ask.over:
                raise ClusterError("the step ended while it waited for experts")
            if ask.flights:
                late = min(at for _, at in ask.flights.values()) - self._clock()
                done, _ = await asyncio.wait(ask.flights, timeout=max(late, 0.0), return_when=asyncio.FIRST_COMPLETED)
                if ask.over:
                    continue
                for future in done:
                    del ask.flights[future]
                    if not isinstance(future.exception(), _Lost):
                        for other in ask.flights:
                            other.cancel()
                        return [Partial(ask.routed.experts, ask.rows, future.result())]
            others = self.holders.choose(ask.routed.layer, ask.routed.experts.tolist(), ask.asked)
            complete = sum(map(len, others.values())) == len(ask.routed.experts)
            if complete and len(others) == 1:
                given_up = None
                self.tally.hedged += bool(ask.flights)
                self.tally.repeated_frames += not ask.flights
                self._post(ask, *others)
            elif ask.flights:  # late, and nobody else has all of it
                ask.flights = {future: (worker, self._clock() + _DEADLINE) for future, (worker, _) in ask.flights.items()}
            elif complete:
                parts = [(worker, *ask.routed.only(experts)) for worker, experts in others.items()]
                split = [(worker, _Ask(part, ask.rows[rows])) for worker, part, rows in parts]
                self.tally.repeated_frames += len(split)
                for worker, part in split:
                    self._step.append(part)
                    self._post(part, worker)
                return [found for _, part in split for found in await self._settle(part)]
            else:
                if given_up is None:
                    given_up = self._clock() + self._patience
                if not ask.asked:
                    await self._wait_for_change(given_up, ask)
                ask.asked.clear()  # a worker that was lost may be asked again when it is back

    async def _wait_for_change(self, until: float, ask: _Ask) -> None:
        """Raises ClusterError if it takes too long."""
        self._changed.clear()
        try:
            async with asyncio.timeout(max(until - self._clock(), 0.0)):
                await self._changed.wait()
        except TimeoutError:
            holders = "; ".join(f"{name}: {self.holders[name].state}" for name in self.holders) or "there are none"
            raise ClusterError(
                f"expert {ask.routed.experts[0]} of layer {ask.routed.layer} could not be had for {self._patience:g} s (workers: {holders})"
            ) from None

    async def _keep_connected(self, worker: str, tried: asyncio.Event) -> None:
        """tried: is set after the first attempt."""
        try:
            await self._stay_connected(worker, tried)
        finally:  # whatever happened, nobody waits for it in vain
            tried.set()

    async def _stay_connected(self, worker: str, tried: asyncio.Event) -> None:
        holder, backoff = self.holders[worker], Backoff(_FIRST_DELAY, _MOST_DELAY)
        while not holder.fenced:
            try:
                stream = await self._connect(worker)
            except (OSError, EOFError, ProtocolError) as error:
                log.info("a worker with experts cannot be reached", worker=worker, reason=str(error) or type(error).__name__)
                tried.set()
                await asyncio.sleep(backoff.next(self._rng))
                continue
            self._streams[worker], holder.away, since = stream, False, self._clock()
            tried.set()
            self._changed.set()
            try:
                await self._receive(worker, holder, stream)
            except (OSError, EOFError, ProtocolError) as error:
                log.warning("a worker with experts is lost", worker=worker, reason=str(error) or type(error).__name__)
            finally:
                self._lose(worker, holder, stream)
            if self._clock() - since > _MOST_DELAY:
                backoff = Backoff(_FIRST_DELAY, _MOST_DELAY)
            await asyncio.sleep(backoff.next(self._rng))  # one that takes connections and ends them is not asked at once, either

    def _lose(self, worker: str, holder: ExpertHolder, stream: FrameStream) -> None:
        holder.away = True
        del self._streams[worker]
        stream.abort()
        for number, (future, of, _, _) in list(self._answers.items()):
            if of == worker:
                del self._answers[number]
                if not future.done():
                    future.set_exception(_Lost(worker))
        holder.abandoned.clear()
        self._changed.set()

    async def _receive(self, worker: str, holder: ExpertHolder, stream: FrameStream) -> None:
        while True:
            frame = await stream.receive()
            holder.abandoned.discard(frame.step)
            known = self._answers.get(frame.step)
            if known is None or known[1] != worker:
                continue  # it was answered before, or the step ended
            future, _, routed, since = self._answers.pop(frame.step)
            if future.done():
                continue  # another answer came first
            try:
                result = self._result(worker, holder, routed, frame)
            except RemoteProtocolError as error:
                holder.fenced = str(error)
                log.error("a worker with experts is not asked any more", worker=worker, reason=str(error))
                future.set_exception(_Lost(str(error)))
                raise
            if isinstance(result, _Lost):
                future.set_exception(result)
                continue
            sums, said = result
            took = self._clock() - since
            holder.seconds.append(took)
            tally = self.tally
            tally.answers += 1
            tally.received += frame.size
            tally.round_trips += took
            tally.queued += said.waited
            tally.computed += said.computed
            future.set_result(sums)

    def _result(self, worker: str, holder: ExpertHolder, routed: Routed, frame: Frame) -> tuple[Sums, SumsHeader] | _Lost:
        """What a worker answered. Raises RemoteProtocolError for what cannot be an answer."""
        if frame.kind is FrameKind.ERROR:
            reason = messages.decode_error(frame.meta).message
            log.warning("a worker refused rows for experts", worker=worker, reason=reason)
            holder.lacks(routed.layer, routed.experts.tolist())
            return _Lost(reason)
        if frame.kind is not FrameKind.EXPERTS:
            raise RemoteProtocolError(f"a {frame.kind.name} frame where experts' sums were expected")
        return decode_sums(frame.meta, frame.body, routed)
