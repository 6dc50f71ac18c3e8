"""A node's experts at work for stages on other machines: takes rows, runs them, sends sums back.

Rows for one layer that wait together run in one call, whichever steps and routes they come from: an expert's weights are read once for
all. Rows of steps that somebody waits for token by token go before those of prompts. A stage that asks faster than this node computes is
slowed down by its connection, which is not read while too much of it waits.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from shoal.control.messages import ExpertWork
from shoal.errors import RemoteProtocolError
from shoal.transport.base import FrameStream
from shoal.wire import messages
from shoal.wire.frame import Frame, FrameKind
from shoal.wire.routed import Routed, Sums, encode_sums, merged

log = structlog.get_logger()

MOST_WAITING = 16
"""Frames of one connection that wait or run; no more are read meanwhile."""
FEW_ROWS = 8
"""A frame with no more rows than this goes before those with more."""
_PATIENCE = 0.25
"""Seconds after which a frame goes before others, however many rows it has."""
_TOGETHER = 512
"""Rows that run in one call, at most, unless one frame has more."""

Compute = Callable[[Callable[[], Sums], int], Awaitable[Sums]]
"""See Environment.step."""


class Bank(Protocol):
    """See executor.expert_bank.ExpertBank."""

    def run(self, routed: Routed) -> Sums: ...


@dataclass(order=True)
class _Waiting:
    many: bool
    number: int
    routed: Routed = field(compare=False)
    frame: Frame = field(compare=False)
    client: _Client = field(compare=False)
    since: float = field(compare=False)


@dataclass
class _Client:
    stream: FrameStream
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MOST_WAITING))
    answers: asyncio.Queue[Frame] = field(default_factory=asyncio.Queue[Frame])
    """Bounded by `room`, since each takes a place of it until it is sent. So a stage that takes no answers stops itself, and nobody else."""
    gone: bool = False

    def answer(self, frame: Frame) -> None:
        """At once, where the stage takes it at once."""
        try:
            if self.gone or (self.answers.empty() and self.stream.offer(frame)):
                self.room.release()
                return
        except ConnectionError as error:
            self.left(error)
            return
        self.answers.put_nowait(frame)

    def left(self, error: ConnectionError) -> None:
        self.gone = True
        self.room.release()  # whoever reads from it may wait for this
        log.info("a stage that had asked experts is gone", peer=self.stream.peer, reason=str(error))


class ExpertService:
    """clock: seconds."""

    def __init__(self, bank: Bank, compute: Compute, clock: Callable[[], float]) -> None:
        self.bank = bank
        self._compute, self._clock = compute, clock
        self._queue: list[_Waiting] = []
        self._numbers = itertools.count()
        self._arrived = asyncio.Event()
        self._work = ExpertWork()

    @property
    def work(self) -> ExpertWork:
        """Done so far; and frames that wait now."""
        self._work.queued = len(self._queue)
        return self._work

    async def serve(self, stream: FrameStream) -> None:
        """Takes rows from a stage that has introduced itself, until it hangs up. Raises EOFError, OSError, ProtocolError."""
        client = _Client(stream)
        writing = asyncio.get_running_loop().create_task(self._write(client))
        try:
            await self._read(client)
        finally:
            client.gone = True
            self._queue = [waiting for waiting in self._queue if waiting.client is not client]
            heapq.heapify(self._queue)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _read(self, client: _Client) -> None:
        while True:
            await client.room.acquire()
            if client.gone:
                raise ConnectionError(f"{client.stream.peer} took no more answers")
            frame = await client.stream.receive()
            if frame.kind is not FrameKind.EXPERTS:
                raise RemoteProtocolError(f"a {frame.kind.name} frame where rows for experts were expected")
            try:
                routed = Routed.decode(frame.meta, frame.body)
            except RemoteProtocolError as error:
                await client.stream.send(_refusal(frame, error))
                raise
            heapq.heappush(self._queue, _Waiting(routed.rows > FEW_ROWS, next(self._numbers), routed, frame, client, self._clock()))
            self._arrived.set()

    async def _write(self, client: _Client) -> None:
        while True:
            frame = await client.answers.get()
            try:
                await client.stream.send(frame)
            except ConnectionError as error:
                client.left(error)
                return
            client.room.release()

    async def run(self) -> None:
        """Computes what arrives, until it is cancelled."""
        while True:
            while not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
            await self._answer(self._next())

    def _next(self) -> list[_Waiting]:
        """The first that waits, and others that can run in one call with it."""
        oldest = min(self._queue, key=lambda waiting: waiting.number)
        if self._clock() - oldest.since > _PATIENCE:
            first = oldest
            self._queue.remove(oldest)
        else:
            first = heapq.heappop(self._queue)
        if not self._queue:
            return [first]
        together, left, rows = [first], list[_Waiting](), first.routed.rows
        for waiting in sorted(self._queue):
            routed = waiting.routed
            alike = (routed.layer, routed.hidden, routed.rounded) == (first.routed.layer, first.routed.hidden, first.routed.rounded)
            if alike and waiting.many == first.many and rows + routed.rows <= _TOGETHER:
                together.append(waiting)
                rows += routed.rows
            else:
                left.append(waiting)
        self._queue = left  # sorted, so it is a heap
        return together

    async def _answer(self, together: list[_Waiting]) -> None:
        present = [waiting for waiting in together if not waiting.client.gone]
        if not present:
            return
        began = self._clock()
        try:
            sums = await self._compute(lambda: self.bank.run(merged([waiting.routed for waiting in present])), present[0].frame.size)
        except Exception as error:
            if len(present) == 1:
                unexpected = None if isinstance(error, RemoteProtocolError) else error
                log.warning("rows for experts were refused", peer=present[0].client.stream.peer, reason=str(error), exc_info=unexpected)
                present[0].client.answer(_refusal(present[0].frame, error))
            else:  # the others need not suffer from one that is wrong
                for waiting in present:
                    await self._answer([waiting])
            return
        seconds, at = self._clock() - began, 0
        self._work.calls += 1
        for waiting in present:
            end = at + waiting.routed.rows
            meta, body = encode_sums(sums[at:end], began - waiting.since, seconds)
            at = end
            self._work.frames += 1
            self._work.rows += waiting.routed.rows
            waiting.client.answer(Frame(FrameKind.EXPERTS, waiting.frame.epoch, waiting.frame.step, meta, body))


def _refusal(frame: Frame, error: Exception) -> Frame:
    return Frame(FrameKind.ERROR, frame.epoch, frame.step, messages.encode(messages.Error(str(error) or type(error).__name__, -1)))
