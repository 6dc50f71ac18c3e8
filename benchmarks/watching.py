"""What it costs to be watched: `python -m benchmarks.watching [--cycles 40] [--nodes 1]`.

Short blocks of requests take turns: nobody looks; a console is open (the operator's stream, and a request's timeline four times a second);
five are; a tenth of the requests is traced. Then what remembering costs per step, measured alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import sys
from collections.abc import AsyncIterator
from statistics import mean, median, stdev
from time import perf_counter
from typing import NamedTuple

import httpx2 as httpx
import psutil

from benchmarks.api_workers import roles, spent, stream, up
from benchmarks.report import processor
from benchmarks.traces import receiver
from shoal.pipeline.timing import StepPart, StepTiming
from shoal.pipeline_id import PipelineId
from shoal.request import Request, RequestId, TokenChunk
from shoal.scheduler.plan import StageTrace
from shoal.telemetry.metrics import PipelineMetrics
from shoal.telemetry.recorder import Recorder, RouteRecorder

STREAMS, TOKENS = 8, 96
SAMPLED = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
POLL = 0.25
"""Seconds between two looks at a timeline, as the console has it."""
_STEPS = 20_000
_TURNS = 16  # looks at a timeline, after which the list of requests is read


async def look(port: int) -> None:
    """What an open console asks, over connections that it keeps, while its input's last line says "open"; it answers every line."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=None) as http:
            opened = asyncio.Event()
            console = asyncio.gather(_follow(http, opened), _timelines(http))
            await opened.wait()
            print("open", flush=True)
            await reader.readline()
            assert not console.done(), "the console ended"
            console.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await console
        print("closed", flush=True)


async def _follow(http: httpx.AsyncClient, opened: asyncio.Event) -> None:
    async with http.stream("GET", "/operator/stream") as answer:
        async for _ in answer.aiter_bytes():
            opened.set()


async def _timelines(http: httpx.AsyncClient) -> None:
    """The timeline of the latest request."""
    at, known = 0, ""
    for turn in itertools.count():
        if turn % _TURNS == 0:
            latest = (await http.get("/operator/requests")).json()["requests"][0]["id"]
            known, at = latest, 0 if latest != known else at
        at = (await http.get(f"/operator/requests/{known}/timeline?after={at}")).json()["next"]
        await asyncio.sleep(POLL)


class Console:
    """A process of its own, as a browser is, with the lowest priority, because it runs on another machine."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def turn(self) -> None:
        """Opens it, or closes it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(b"\n")
        assert await self._process.stdout.readline(), "the console ended"

    async def end(self) -> None:
        self._process.kill()
        await self._process.wait()


@contextlib.asynccontextmanager
async def consoles(port: int, count: int) -> AsyncIterator[list[Console]]:
    command = ("nice", "-n", "19", sys.executable, "-m", "benchmarks.watching", "--look", str(port))
    pipe = asyncio.subprocess.PIPE
    made = [Console(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)) for _ in range(count)]
    try:
        yield made
    finally:
        for console in made:
            await console.end()


class Situation(NamedTuple):
    name: str
    consoles: int = 0
    traced: int = 0
    """Of ten requests."""


SITUATIONS = (
    Situation("nobody looks"),
    Situation("a console", 1),
    Situation("five consoles", 5),
    Situation("traces of 10 %", traced=1),
    Situation("a console, and traces of 10 %", 1, traced=1),
)


class Ran(NamedTuple):
    speed: float
    """Tokens per second."""
    share: float
    """Of a core, that the head and its API worker take."""


async def block(port: int, who: list[psutil.Process], number: int, traced: int) -> Ran:
    before, began = spent(who), perf_counter()
    ids = range(number * STREAMS, (number + 1) * STREAMS)
    await asyncio.gather(*(stream(port, id, TOKENS, SAMPLED if id % 10 < traced else "") for id in ids))
    seconds = perf_counter() - began
    return Ran(STREAMS * TOKENS / seconds, (spent(who) - before) / seconds)


async def cycles(count: int, nodes: int) -> list[dict[str, Ran]]:
    """Each with a short block of each situation, so that what else the machine does meets all alike."""
    found: list[dict[str, Ran]] = []
    most = max(situation.consoles for situation in SITUATIONS)
    async with receiver() as (_, where), up("--api-workers", "1", "--traces", where, "--trace-sample", "0", nodes=nodes) as (port, head):
        who = [head, *roles(head)["workers"]]
        async with consoles(port, most) as looking:
            for number in range(count):
                ran = dict[str, Ran]()
                for at, situation in enumerate(SITUATIONS if number % 2 else SITUATIONS[::-1]):
                    for console in looking[: situation.consoles]:
                        await console.turn()
                    ran[situation.name] = await block(port, who, number * len(SITUATIONS) + at, situation.traced)
                    for console in looking[: situation.consoles]:
                        await console.turn()
                found.append(ran)
    return found


def remembering() -> float:
    """Microseconds per step of eight requests over two stages: events, timelines, the day, and metrics."""
    recorder, metrics = Recorder(perf_counter, 0.0), PipelineMetrics(PipelineId("model"), {})
    record = RouteRecorder(recorder)
    ids = [RequestId(f"r{i}") for i in range(STREAMS)]
    for id in ids:
        recorder.timelines.begun(id, [Request(id, [1] * 32, _STEPS)], 0.0)
    metrics.route(["a", "b"])
    parts = tuple(StepPart(id, 1, 1) for id in ids)
    traces = tuple(StageTrace(1e-4, 1e-4, 3e-3, 1e-4, 1e-5, 5.0 + i) for i in range(2))
    chunks = [TokenChunk(id, 0, 7) for id in ids]
    began = perf_counter()
    for i in range(_STEPS):
        timing = StepTiming(8, 8, 1e-4, 1e-5, 1e-5, 8e-3, 1e-4, traces, i, 1, i * 8e-3, parts)
        metrics.step(timing, record.step(timing))
        recorder.sampled(chunks)
    return (perf_counter() - began) / _STEPS * 1e6


async def main(count: int, nodes: int) -> None:
    found = await cycles(count, nodes)
    plain = SITUATIONS[0].name
    speed = median(ran[plain].speed for ran in found)
    print(f"{processor()}: {STREAMS} streams of {TOKENS} tokens at a time over {nodes} node(s) of one thread, {speed:.1f} tokens/s where")
    print(f"nobody looks; means of {count} cycles, with their standard errors\n")
    print("| | tokens/s, of those of the same cycle where nobody looks | the head's share of a core |\n|---|---|---|")
    for name in (situation.name for situation in SITUATIONS):
        ratios = [ran[name].speed / ran[plain].speed for ran in found]
        error = stdev(ratios) / len(ratios) ** 0.5
        print(f"| {name} | {mean(ratios):.3f} ± {error:.3f} | {median(ran[name].share for ran in found):.1%} |")
    took, step = remembering(), STREAMS / speed * 1e6
    print(f"\nremembering a step: {took:.0f} µs, {took / step:.2%} of the {step / 1e3:.1f} ms of a step")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=40)
    parser.add_argument("--nodes", type=int, default=1, help="at least one core should be left for the head and the consoles")
    parser.add_argument("--look", type=int, metavar="PORT", help="be a console of the head there")
    given = parser.parse_args()
    asyncio.run(look(given.look) if given.look else main(given.cycles, given.nodes))
