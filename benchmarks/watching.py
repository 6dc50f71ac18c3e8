"""What it costs to be watched: `python -m benchmarks.watching [--rounds 5]`.

One cluster of two nodes, whose rounds take turns: nobody looks; a console is open (the operator's stream, and a request's timeline eight
times a second); five are. Then what remembering costs per step, measured alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import sys
from collections.abc import AsyncIterator
from statistics import median
from time import perf_counter

import httpx2 as httpx

from benchmarks.api_workers import spent, stream, up
from benchmarks.report import processor
from shoal.pipeline.timing import StepPart, StepTiming
from shoal.request import Request, RequestId, TokenChunk
from shoal.scheduler.plan import StageTrace
from shoal.telemetry.metrics import Metrics
from shoal.telemetry.recorder import Recorder

STREAMS, TOKENS = 8, 192
POLL = 0.12
"""Seconds between two looks at a timeline, as the console has it."""
WATCHERS = (0, 1, 5)
_STEPS = 20_000
_TURNS = 16  # looks at a timeline, after which the list of requests is read
_SETTLING = 2.0  # seconds that a console takes to start


async def look(port: int) -> None:
    """What an open console asks, over connections that it keeps: a process of its own, because it runs on another machine."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=None) as http:
        await asyncio.gather(_follow(http), _timelines(http))


async def _follow(http: httpx.AsyncClient) -> None:
    async with http.stream("GET", "/operator/stream") as answer:
        async for _ in answer.aiter_bytes():
            pass


async def _timelines(http: httpx.AsyncClient) -> None:
    """The timeline of the latest request."""
    at, known = 0, ""
    for turn in itertools.count():
        if turn % _TURNS == 0:
            latest = (await http.get("/operator/requests")).json()["requests"][0]["id"]
            known, at = latest, 0 if latest != known else at
        at = (await http.get(f"/operator/requests/{known}/timeline?after={at}")).json()["next"]
        await asyncio.sleep(POLL)


@contextlib.asynccontextmanager
async def watched(port: int, count: int) -> AsyncIterator[None]:
    """The lowest priority keeps their own work away from the cores of the cluster."""
    command = ("nice", "-n", "19", sys.executable, "-m", "benchmarks.watching", "--look", str(port))
    consoles = [await asyncio.create_subprocess_exec(*command) for _ in range(count)]
    try:
        await asyncio.sleep(_SETTLING)
        yield
        assert all(console.returncode is None for console in consoles), "a console ended"
    finally:
        for console in consoles:
            console.kill()
            await console.wait()


async def speeds(rounds: int) -> dict[int, list[tuple[float, float]]]:
    """Tokens per second of each round, and the head's share of a core, by how many watched."""
    found: dict[int, list[tuple[float, float]]] = {count: [] for count in WATCHERS}
    async with up("--api-workers", "1") as (port, head):
        for number in range(rounds):
            for count in WATCHERS if number % 2 else WATCHERS[::-1]:
                async with watched(port, count):
                    before, began = spent([head]), perf_counter()
                    await asyncio.gather(*(stream(port, number * STREAMS + i, TOKENS) for i in range(STREAMS)))
                    seconds = perf_counter() - began
                    found[count].append((STREAMS * TOKENS / seconds, (spent([head]) - before) / seconds))
    return found


def remembering() -> float:
    """Microseconds per step of eight requests over two stages: events, timelines, the day, and metrics."""
    recorder, metrics = Recorder(perf_counter, 0.0), Metrics("model", {})
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
        metrics.step(timing, recorder.step(timing))
        recorder.sampled(chunks)
    return (perf_counter() - began) / _STEPS * 1e6


async def main(rounds: int) -> None:
    found = await speeds(rounds)
    alone = median(speed for speed, _ in found[0])
    print(f"{processor()}: {STREAMS} streams of {TOKENS} tokens over two nodes of one thread, medians of {rounds} rounds\n")
    print("| consoles | tokens/s | of those without | the head's share of a core |\n|---|---|---|---|")
    for count, ran in found.items():
        speed, share = median(speed for speed, _ in ran), median(share for _, share in ran)
        print(f"| {count} | {speed:.1f} | {speed / alone:.3f} | {share:.1%} |")
    spent, step = remembering(), STREAMS / alone * 1e6
    print(f"\nremembering a step: {spent:.0f} µs, {spent / step:.2%} of the {step / 1e3:.1f} ms of a step")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--look", type=int, metavar="PORT", help="be a console of the head there")
    given = parser.parse_args()
    asyncio.run(look(given.look) if given.look else main(given.rounds))
