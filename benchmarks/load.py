"""A load generator, in a process of its own: requests over real HTTP, streamed, and when each event came.

It speaks just enough HTTP to cost little: per chunk of bytes it counts `data:` lines and reads the clock, no more.

Reads a Plan as JSON from its standard input and writes a Report to its standard output.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from time import perf_counter, process_time

import msgspec
import uvloop

from benchmarks.traffic import Arrival

_EVENT, _DONE, _ERROR = b"\ndata: {", b"\ndata: [", b'\ndata: {"error"'  # of the first two none is the other's beginning


class Plan(msgspec.Struct):
    host: str
    port: int
    arrivals: list[Arrival]
    streams: int = 0
    """So many requests at a time, the next when one has ended; 0: each when it arrives."""
    cut: bool = False
    """Whether all are cut off when the last request of the list has ended."""
    until: float = 0.0
    """Seconds after which all are cut off; 0: never."""
    patience: float = 600.0
    """Seconds after which a request counts as failed."""


class Outcome(msgspec.Struct):
    sent: float
    """Seconds on the plan's clock, as all times."""
    late: float
    """Seconds after it should have been sent: the generator's own delay."""
    events: list[float]
    """When the events with text came; the last ones may bring none."""
    tokens: int
    error: str = ""

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.events[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens."""
        return [b - a for a, b in zip(self.events, self.events[1:], strict=False)]


class Report(msgspec.Struct):
    outcomes: list[Outcome]
    seconds: float
    busy: float
    """Seconds of processor time that the generator itself took."""

    @property
    def served(self) -> list[Outcome]:
        return [o for o in self.outcomes if not o.error]

    @property
    def throughput(self) -> float:
        """Output tokens per second."""
        return sum(o.tokens for o in self.served) / self.seconds


class _Reader(asyncio.Protocol):
    """Reads one answer to its end."""

    def __init__(self, clock: float) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.events: list[float] = []
        self.error = ""
        self._clock = clock
        self._head = b""
        self._tail = b""
        self._over = False

    def data_received(self, data: bytes) -> None:
        now = perf_counter() - self._clock
        if not self._tail:
            self._head += data
            if b"\r\n\r\n" not in self._head:
                return
            if b" 200 " not in self._head[:16]:
                self.error = self._head.decode(errors="replace")[:200]
            data = self._head
        seen = self._tail + data  # without the tail's own events: it is shorter than one
        if not self._over:
            self.events += [now] * seen.count(_EVENT)
            self._over = _DONE in seen
            if _ERROR in seen:
                self.error = seen[seen.index(_ERROR) :].decode(errors="replace")[:200]
        self._tail = seen[-(len(_EVENT) - 1) :]
        if self._over and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.error = self.error or f"the connection ended: {exc}"
            self.done.set_result(None)


def _body(plan: Plan, arrival: Arrival) -> bytes:
    wanted = {"prompt": arrival.prompt, "max_tokens": arrival.tokens, "temperature": 0, "stream": True, "ignore_eos": True}
    body = json.dumps(wanted).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {plan.host}:{plan.port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


async def _send(plan: Plan, arrival: Arrival, body: bytes, clock: float, over: asyncio.Future[None]) -> Outcome:
    """over: done when all are to be cut off."""
    sent = perf_counter() - clock
    outcome = Outcome(sent, sent - arrival.at if not plan.streams else 0.0, [], arrival.tokens)
    try:
        async with asyncio.timeout(plan.patience):
            transport, reader = await asyncio.get_running_loop().create_connection(lambda: _Reader(clock), plan.host, plan.port)
            try:
                transport.write(body)
                await asyncio.wait({reader.done, over}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                transport.abort()
    except (OSError, TimeoutError) as error:
        outcome.error = repr(error)
        return outcome
    outcome.events, outcome.error = reader.events, reader.error or ("" if reader.events else "no token came")
    return outcome


async def _run(plan: Plan) -> Report:
    bodies = [_body(plan, arrival) for arrival in plan.arrivals]
    busy, clock = process_time(), perf_counter()

    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end() -> None:
        if not over.done():
            over.set_result(None)

    async def arrive(arrival: Arrival, body: bytes) -> Outcome:
        await asyncio.sleep(max(0.0, clock + arrival.at - perf_counter()))
        outcome = await _send(plan, arrival, body, clock, over)
        if plan.cut and arrival is plan.arrivals[-1]:
            end()
        return outcome

    async def stream(work: Iterator[tuple[Arrival, bytes]]) -> list[Outcome]:
        return [await _send(plan, arrival, body, clock, over) for arrival, body in work]

    if plan.until:
        asyncio.get_running_loop().call_at(asyncio.get_running_loop().time() + plan.until, end)
    work = list(zip(plan.arrivals, bodies, strict=True))
    if plan.streams:
        shared = iter(work)
        outcomes = [o for done in await asyncio.gather(*(stream(shared) for _ in range(plan.streams))) for o in done]
    else:
        outcomes = list(await asyncio.gather(*(arrive(*item) for item in work)))
    return Report(outcomes, perf_counter() - clock, process_time() - busy)


def run(plan: Plan) -> Report:
    """In a process of its own. Raises subprocess.CalledProcessError."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.load"], input=msgspec.json.encode(plan), stdout=subprocess.PIPE, check=True)
    return msgspec.json.decode(done.stdout, type=Report)


if __name__ == "__main__":
    given = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(_run(given))))
