"""A stage's end of its conversations with workers that hold experts: who is asked, what came, and what to do if nothing does.

An answer that does not come is asked of a replica: when its worker's connection breaks, at once; when it is late, beside it, and the
first answer counts. No step waits for a worker to take what it is sent. Rows are the same whoever runs them, and so are the sums, so no
answer is wrong because another one came, too. Where nobody else has an expert, the step waits for its worker to come back, for a bounded
time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

import structlog

from shoal.control.messages import ExpertAsks
from shoal.errors import ClusterError, ProtocolError, RemoteProtocolError
from shoal.executor.base import Ints, Partial, Send
from shoal.executor.expert_split import ROWS_LIKE_READING
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
_FATAL = 3
"""Times that a worker's connection breaks over one question; then it is asked somebody else, or the step fails: it may be the rows' fault."""
_WITHOUT = 1.0
"""Seconds after which a step goes on without experts, where it may: or twice as long as their worker usually takes to be late."""
_FIRST_DELAY, _MOST_DELAY = 0.05, 2.0
_SHORTEST = 1e-4
"""Seconds that a step waits, at least, before it looks again."""

Connect = Callable[[str], Awaitable[FrameStream]]
"""To a worker, by its name; both have introduced themselves. Raises OSError, EOFError, ProtocolError, TimeoutError."""


class _Lost(Exception):
    """A worker will not answer."""


@dataclass(eq=False)
class _Ask:
    """Experts that one worker was asked at first."""

    routed: Routed
    rows: Ints
    begun: float
    spare: frozenset[int]
    """Those of them that the stage runs itself if nobody else does soon."""
    flights: dict[int, tuple[str, float]] = field(default_factory=dict[int, tuple[str, float]])
    """By number of the frame: who was asked, and when he is late."""
    asked: set[str] = field(default_factory=set[str])
    losses: Counter[str] = field(default_factory=Counter[str])
    """Connections that broke while a worker was asked for this."""
    given_up: float | None = None
    """When the step fails, if nobody has them until then."""
    answer: tuple[Sums, SumsHeader] | None = None

    @property
    def work(self) -> float:
        """In units of which a worker takes about as long for each."""
        header = self.routed.header
        return header.experts + header.entries / ROWS_LIKE_READING


class _Asked(NamedTuple):
    """A frame that was not answered yet."""

    ask: _Ask
    worker: str
    since: float


class ExpertLinks:
    """needed: by layer, experts that the stage cannot run itself. epoch: of the stage. clock: seconds. patience: seconds that a step waits for an
    expert that nobody has now. turns: of the event loop that a step waits without leaving the processor, which takes longer to wake up
    than most answers do. degrade: a step goes on without experts that nobody has. For one event loop."""

    def __init__(
        self,
        holders: Holders,
        needed: Mapping[int, frozenset[int]],
        connect: Connect,
        epoch: int,
        clock: Callable[[], float],
        rng: Random,
        patience: float = PATIENCE,
        turns: int = 0,
        degrade: bool = False,
    ) -> None:
        self.holders, self.tally = holders, ExpertAsks()
        self._needed, self._connect, self._epoch, self._clock, self._rng = needed, connect, epoch, clock, rng
        self._patience, self._turns, self._degrade = patience, turns, degrade
        self._streams: dict[str, FrameStream] = {}
        self._answers: dict[int, _Asked] = {}
        """By number of the frame."""
        self._numbers = 0
        self._step: list[_Ask] = []
        """What the step under way has sent, and is not settled yet."""
        self._settled: list[_Ask] = []
        self._failure: Exception | None = None
        """Of the step under way."""
        self._woken: asyncio.Future[None] | None = None
        """Of the step that waits: an answer came, or a worker came or was lost."""
        self._links: list[asyncio.Task[None]] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Connects to all workers, and keeps connecting to those that it loses. Raises ClusterError if an expert that is needed has nobody who
        can be reached."""
        first = [asyncio.Event() for _ in self.holders]
        for worker, tried in zip(self.holders, first, strict=True):
            self.holders[worker].away = True
            self._links.append(asyncio.get_running_loop().create_task(self._keep_connected(worker, tried)))
        for tried in first:
            await tried.wait()
        for layer, experts in self._needed.items():
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
        self.holders.forgive(self._clock())
        left = routed.experts.tolist()
        for worker, experts in self.holders.choose(routed.layer, left, answering=self._degrade).items():
            self._post(self._begin(asked, experts), worker)
            left = [expert for expert in left if expert not in experts]
        if left:
            self._begin(asked, left)

    def _begin(self, asked: Send, experts: list[int], of: _Ask | None = None) -> _Ask:
        """of: the question of which these are a part."""
        if len(experts) == asked.routed.header.experts:  # all, as where there is one worker
            ask = _Ask(asked.routed, asked.rows, self._clock(), asked.spare.intersection(experts))
        else:
            part, rows = asked.routed.only(experts)
            ask = _Ask(part, asked.rows[rows], self._clock(), asked.spare.intersection(experts))
        if of is not None:
            ask.begun, ask.losses = of.begun, Counter(of.losses)
        self._step.append(ask)
        return ask

    async def collect(self) -> list[Partial]:
        """Of spare experts, and of all if a step may go on without, those that came. Raises ClusterError if another one cannot be had, or the step is forgotten meanwhile."""
        began, turns, step = self._clock(), self._turns, self._step
        try:
            while wait := self._advanced():
                if turns > 0:
                    turns -= 1
                    await asyncio.sleep(0)
                else:
                    await self._wait(wait)
                if self._step is not step:
                    raise ClusterError("the step ended while it waited for experts")
            return [
                Partial(ask.routed.experts, ask.rows, ask.answer[0], ask.answer[1].computed)
                for ask in self._settled
                if ask.answer is not None
            ]
        finally:
            self.forget()
            self.tally.waited += self._clock() - began

    def forget(self) -> None:
        """Answers that come later are dropped."""
        for ask in self._step:
            self._abandon(ask)
        self._step, self._settled, self._failure = [], [], None
        self._wake()

    def _abandon(self, ask: _Ask) -> None:
        """Nobody waits for these flights any more."""
        for number in ask.flights:
            if (asked := self._answers.pop(number, None)) is not None:
                holder = self.holders[asked.worker]
                holder.outstanding -= ask.routed.rows
                holder.abandoned[number] = asked.since, ask.work
        ask.flights.clear()

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def _wait(self, seconds: float) -> None:
        """For anything that may matter to the step, or that long."""
        self._woken = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds):
                await self._woken
        except TimeoutError:
            pass
        finally:
            self._woken = None

    def _advanced(self) -> float:
        """Asks whoever else has the experts where one is late or lost. Seconds until there is something to do again, unless something happens
        before; 0: everything that was sent is settled. Raises ClusterError."""
        for ask in list(self._step):
            if not ask.flights or min(at for _, at in ask.flights.values()) <= self._clock():
                self._ask_again(ask)
        if self._failure is not None:
            raise self._failure
        due = [self._due(ask) for ask in self._step]
        return max(min(due) - self._clock(), _SHORTEST) if due else 0.0

    def _due(self, ask: _Ask) -> float:
        """When something has to be done about it. Raises ClusterError if the time is over."""
        if ask.flights:
            return min(at for _, at in ask.flights.values())
        if ask.given_up is None:  # the worker that was asked turned out to be lost
            return self._clock() + _FIRST_DELAY
        if ask.given_up <= self._clock():
            raise self._not_had(ask)
        return ask.given_up

    def _ask_again(self, ask: _Ask) -> None:
        """For one that is late, or that nobody was asked for yet, or whose workers are all lost."""
        routed = ask.routed
        if self._degrade and ask.flights and self._clock() - ask.begun >= self._without(ask):
            self._abandon(ask)
        fatal = {worker for worker, losses in ask.losses.items() if losses >= _FATAL}
        others = self.holders.choose(routed.layer, routed.experts.tolist(), ask.asked | fatal, answering=self._degrade)
        complete = sum(map(len, others.values())) == len(routed.experts)
        if complete and len(others) == 1:
            self.tally.hedged += bool(ask.flights)
            self.tally.repeated_frames += not ask.flights
            self._post(ask, *others)
        elif ask.spare.issuperset(routed.experts.tolist()):
            self.tally.taken_back += 1
            self._abandon(ask)
            self._settle(ask)
        elif ask.flights:  # late, and nobody else has all of it
            again = self._clock() + (self._without(ask) if self._degrade else _DEADLINE)
            ask.flights = {number: (worker, again) for number, (worker, _) in ask.flights.items()}
        elif complete:
            self._step.remove(ask)
            for worker, experts in others.items():
                self.tally.repeated_frames += 1
                self._post(self._begin(Send(routed, ask.rows, ask.spare), experts, ask), worker)
        elif ask.asked:
            ask.asked.clear()  # a worker that was lost may be asked again when it is back
            self._ask_again(ask)
        elif self._degrade:
            self._step.remove(ask)
            left = set(routed.experts.tolist())
            for worker, experts in others.items():
                self._post(self._begin(Send(routed, ask.rows, ask.spare), experts, ask), worker)
                left.difference_update(experts)
            self.tally.dropped += len(left - ask.spare)
        elif ask.spare:
            self.tally.taken_back += 1
            self._step.remove(ask)
            self._ask_again(self._begin(Send(routed, ask.rows), sorted(set(routed.experts.tolist()) - ask.spare), ask))
        elif ask.given_up is None:
            hope = self.holders.may_come_back(routed.layer, routed.experts.tolist(), fatal)
            ask.given_up = self._clock() + (self._patience if hope else 0.0)

    def _without(self, ask: _Ask) -> float:
        """Seconds after which a step goes on without these experts, where it may: who computes longer than others is not gone."""
        return max(_WITHOUT, *(2 * self._patient(worker, ask) for worker, _ in ask.flights.values()))

    def _not_had(self, ask: _Ask) -> ClusterError:
        holders = "; ".join(f"{name}: {self.holders[name].state}" for name in self.holders) or "there are none"
        return ClusterError(
            f"expert {ask.routed.experts[0]} of layer {ask.routed.layer} could not be had for {self._clock() - ask.begun:.1f} s "
            f"(workers: {holders})"
        )

    def _settle(self, ask: _Ask) -> None:
        self._step.remove(ask)
        self._settled.append(ask)

    def _post(self, ask: _Ask, worker: str) -> None:
        """Asks a worker."""
        holder, now = self.holders[worker], self._clock()
        self._numbers += 1
        number = self._numbers
        self._answers[number] = _Asked(ask, worker, now)
        due = now + self._patient(worker, ask)
        ask.flights = {earlier: (of, max(at, due)) for earlier, (of, at) in ask.flights.items()}  # whose time is over has the new one's
        ask.flights[number] = (worker, due)
        ask.asked.add(worker)
        ask.given_up = None
        holder.outstanding += ask.routed.rows
        frame = Frame(FrameKind.EXPERTS, self._epoch, number, *ask.routed.encode())
        self.tally.frames += 1
        self.tally.sent += frame.size
        try:
            if self._stream(worker).offer(frame):  # so it leaves before the stage goes on, which may be in this thread
                return
        except (ConnectionError, ProtocolError) as error:
            self._failed(number, error)
            return
        sending = asyncio.get_running_loop().create_task(self._hand_over(worker, frame))
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)

    def _patient(self, worker: str, ask: _Ask) -> float:
        """Seconds after which its answer is late."""
        late = self.holders[worker].late
        return _DEADLINE if late is None else max(late * ask.work, _SOONEST)

    def _stream(self, worker: str) -> FrameStream:
        if (stream := self._streams.get(worker)) is None:
            raise ConnectionError(f"{worker} is not connected")
        return stream

    async def _hand_over(self, worker: str, frame: Frame) -> None:
        """To a worker that has to take something else before."""
        if frame.step not in self._answers:  # the worker was lost, or nobody waits for it any more
            self.holders[worker].abandoned.pop(frame.step, None)  # it was never asked
            return
        try:
            await self._stream(worker).send(frame)
        except (ConnectionError, ProtocolError) as error:
            self._failed(frame.step, error)

    def _failed(self, number: int, error: Exception) -> None:
        """A frame will not be answered. Other errors than a lost connection are the step's."""
        if (asked := self._answers.pop(number, None)) is None:
            return
        self.holders[asked.worker].outstanding -= asked.ask.routed.rows
        asked.ask.flights.pop(number, None)
        if isinstance(error, ConnectionError):
            asked.ask.losses[asked.worker] += 1
        elif not isinstance(error, _Lost):
            self._failure = error
        self._wake()

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
            self._wake()
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
        for number in [number for number, asked in self._answers.items() if asked.worker == worker]:
            self._failed(number, ConnectionResetError(worker))
        holder.abandoned.clear()
        self._wake()

    async def _receive(self, worker: str, holder: ExpertHolder, stream: FrameStream) -> None:
        while True:
            frame = await stream.receive()
            if (abandoned := holder.abandoned.pop(frame.step, None)) is not None:
                since, work = abandoned
                holder.answered(self._clock() - since, work)  # or one that became slow would be late for ever
            asked = self._answers.get(frame.step)
            if asked is None or asked.worker != worker:
                continue  # it was answered before, or the step ended
            ask = asked.ask
            try:
                result = self._result(holder, ask.routed, frame)
            except RemoteProtocolError as error:
                holder.fenced = str(error)
                log.error("a worker with experts is not asked any more", worker=worker, reason=str(error))
                self._failed(frame.step, _Lost(str(error)))
                raise
            if isinstance(result, _Lost):
                self._failed(frame.step, result)
                continue
            del self._answers[frame.step]
            holder.outstanding -= ask.routed.rows
            took = self._clock() - asked.since
            holder.answered(took, ask.work)
            tally, said = self.tally, result[1]
            tally.answers += 1
            tally.received += frame.size
            tally.round_trips += took
            tally.queued += said.waited
            tally.computed += said.computed
            del ask.flights[frame.step]
            self._abandon(ask)
            ask.answer = result
            self._settle(ask)
            self._wake()

    def _result(self, holder: ExpertHolder, routed: Routed, frame: Frame) -> tuple[Sums, SumsHeader] | _Lost:
        """What a worker answered. Raises RemoteProtocolError for what cannot be an answer."""
        if frame.kind is FrameKind.ERROR:
            reason = messages.decode_error(frame.meta).message
            log.warning("a worker refused rows for experts", reason=reason)
            holder.refused(routed.layer, routed.experts.tolist(), self._clock())
            return _Lost(reason)
        if frame.kind is not FrameKind.EXPERTS:
            raise RemoteProtocolError(f"a {frame.kind.name} frame where experts' sums were expected")
        return decode_sums(frame.meta, frame.body, routed)
