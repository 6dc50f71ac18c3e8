"""Elections in simulated time: heads whose clocks differ and that are stopped and go on, a keeper that restarts, and a net that loses
and delays requests and answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass
from random import Random
from types import coroutine
from typing import Any, TypeVar

import httpx2 as httpx

from shoal.errors import LeaseUnreachable
from shoal.leadership.candidate import Candidate
from shoal.leadership.lease import Grant, Holder, Lease
from shoal.leadership.ledger import WitnessLedger
from shoal.leadership.witness_protocol import Acquire, Inquire, Release, Renew, State
from shoal.testing.clock import SimulatedLoop
from tests.support.json_server import JsonServer

T = TypeVar("T")


def simulate(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(work)


@dataclass
class Stop:
    """A process as the system sees it: SIGSTOP clears `running`, SIGCONT sets it."""

    running: asyncio.Event

    @classmethod
    def new(cls) -> Stop:
        (stop := cls(asyncio.Event())).running.set()
        return stop


@coroutine
def stoppable(work: Coroutine[Any, Any, T], stop: Stop) -> Generator[Any, Any, T]:
    """Runs a coroutine only while its process runs; what it waits for happens meanwhile, as timers and sockets do."""
    error: BaseException | None = None
    while True:
        while not stop.running.is_set():
            try:
                yield from stop.running.wait().__await__()
            except asyncio.CancelledError as cancelled:  # delivered when the process goes on
                error = cancelled
        try:
            waited = work.send(None) if error is None else work.throw(error)
        except StopIteration as done:
            return done.value
        error = None
        try:
            yield waited
        except (Exception, asyncio.CancelledError) as thrown:  # noqa: BLE001 - the coroutine's to handle
            error = thrown


class Net:
    """Between one head and the keeper. cut: nothing passes. loss: share of requests, and of answers, that are lost. delay: seconds at
    most, each way. A request that is given up arrives all the same."""

    def __init__(self, rng: Random, loss: float = 0.0, delay: float = 0.0) -> None:
        self.rng, self.loss, self.delay = rng, loss, delay
        self.cut = False
        self._under_way: set[asyncio.Task[Any]] = set()

    async def carry(self, request: Callable[[], Awaitable[T]]) -> T:
        """Raises ConnectionError, or never returns, where the request or its answer is lost."""

        async def carried() -> T:
            await self._pass()
            answer = await request()
            await self._pass()
            return answer

        task = asyncio.ensure_future(carried())
        self._under_way.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    async def _pass(self) -> None:
        if self.delay:
            await asyncio.sleep(self.rng.random() * self.delay)
        if self.cut or self.rng.random() < self.loss:
            if self.rng.random() < 0.5:
                raise ConnectionError("refused")
            await asyncio.sleep(1e6)  # nothing ever comes

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()


class FarLease:
    """A lease over a net."""

    def __init__(self, lease: Lease, net: Net, now: Callable[[], float]) -> None:
        self.duration = lease.duration
        self._lease, self._net, self._now = lease, net, now

    async def _over(self, request: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            return await self._net.carry(request)
        except ConnectionError as error:
            raise LeaseUnreachable("the keeper", str(error)) from None

    async def acquire(self, address: str) -> Grant | None:
        return self._since(self._now(), await self._over(lambda: self._lease.acquire(address)))

    async def renew(self) -> Grant | None:
        return self._since(self._now(), await self._over(self._lease.renew))

    async def release(self) -> None:
        """Without a delay: the leases behind this one name what they release only when it arrives."""
        if self._net.cut:
            raise LeaseUnreachable("the keeper", "refused")
        await self._lease.release()

    async def holder(self) -> Holder | None:
        return await self._over(self._lease.holder)

    async def close(self) -> None:
        await self._lease.close()

    def _since(self, sent: float, grant: Grant | None) -> Grant | None:
        """Counted from before the request left this head, as the real leases count."""
        return None if grant is None else Grant(grant.term, sent + self.duration)


class FarServer(httpx.AsyncBaseTransport):
    """HTTP over a net, to a server that answers JSON."""

    def __init__(self, server: JsonServer, net: Net) -> None:
        self._server, self._net = server, net

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        headers = {name.title(): value for name, value in request.headers.items()}

        async def answer() -> httpx.Response:
            status, said = self._server.answer(request.method, request.url.path, headers, json.loads(body) if body else None)
            return httpx.Response(status, content=json.dumps(said).encode())  # as a copy: the server's own may change

        try:
            return await self._net.carry(answer)
        except ConnectionError as error:
            raise httpx.ConnectError(str(error)) from None


class LedgerLease:
    """A witness's lease without its sockets. place: where its ledger is now."""

    def __init__(self, place: list[WitnessLedger], owner: str, duration: float) -> None:
        self.duration = duration
        self._place, self._owner = place, owner
        self._term = 0

    async def acquire(self, address: str) -> Grant | None:
        state = self._place[0].acquire(Acquire("reef", self._owner, address, 0, self.duration))
        if state.granted:
            self._term = state.term
        return self._granted(state)

    async def renew(self) -> Grant | None:
        return self._granted(self._place[0].renew(Renew("reef", self._owner, self._term, self.duration)))

    async def release(self) -> None:
        self._place[0].release(Release("reef", self._owner, self._term))

    async def holder(self) -> Holder | None:
        state = self._place[0].inquire(Inquire("reef"))
        return Holder(state.address, state.term) if state.address else None

    async def close(self) -> None:
        pass

    def _granted(self, state: State) -> Grant | None:
        return Grant(self._term, 0.0) if state.granted else None  # FarLease knows when it was asked


class Head:
    """A process with a candidate in it that leads as often as it can."""

    def __init__(
        self, number: int, lease: Callable[[Callable[[], float]], Lease], rng: Random, skew: float, rate: float, heads: list[Head]
    ) -> None:
        """skew: seconds that its clock is ahead. rate: how fast it runs. heads: all of the cluster, itself among them."""
        self.name = f"head {number}"
        loop = asyncio.get_running_loop()
        self.now = lambda: loop.time() * rate + skew
        self.candidate = Candidate(lease(self.now), f"10.0.0.{number}:7420", self.now, rng)
        self.stop = Stop.new()
        self.terms: list[int] = []
        self.beside: list[str] = []
        """Who led when this head began to, which nobody may."""
        self._heads = heads
        self.task = asyncio.ensure_future(stoppable(self._run(), self.stop))

    async def _run(self) -> None:
        while True:
            grant = await self.candidate.lead()
            self.terms.append(grant.term)
            self.beside += [head.name for head in self._heads if head is not self and head.leads]
            await self.candidate.until_lost()

    @property
    def leads(self) -> bool:
        """A stopped one does nothing, but would, if it went on now."""
        return self.candidate.leads(self.now())
