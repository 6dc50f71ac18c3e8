"""What it costs to be watched: `python -m benchmarks.watching [--rounds 5]`.

One cluster of two nodes, whose rounds take turns: nobody looks; a console is open (the operator's stream, and a request's timeline four
times a second); five are. Then what remembering costs per step, measured alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.api_workers import request, stream, up
from benchmarks.report import processor
from shoal.pipeline.timing import StepPart, StepTiming
from shoal.request import Request, RequestId, TokenChunk
from shoal.scheduler.plan import StageTrace
from shoal.telemetry.metrics import Metrics
from shoal.telemetry.recorder import Recorder

STREAMS, TOKENS, POLL = 8, 192, 0.25
WATCHERS = (0, 1, 5)
_STEPS = 20_000


async def _followed(port: int) -> None:
    async for _ in request(port, "GET", "/operator/stream"):
        pass


async def _timelines(port: int) -> None:
    """The timeline of the latest request, as the console asks for it."""
    at, known = 0, ""
    while True:
        listed = await _json(port, "/operator/requests")
        if listed["requests"]:
            id = listed["requests"][0]["id"]
            at = at if id == known else 0
            known, at = id, (await _json(port, f"/operator/requests/{id}/timeline?after={at}"))["next"]
        await asyncio.sleep(POLL)


async def _json(port: int, path: str) -> dict[str, Any]:
    answer = b"".join([part async for part in request(port, "GET", path)])
    return json.loads(answer.split(b"\r\n\r\n", 1)[1])


@contextlib.asynccontextmanager
async def watched(port: int, count: int) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(work(port)) for _ in range(count) for work in (_followed, _timelines)]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def speeds(rounds: int) -> dict[int, list[float]]:
    """Tokens per second of each round, by how many watched."""
    found: dict[int, list[float]] = {count: [] for count in WATCHERS}
    async with up("--api-workers", "1") as (port, _):
        for number in range(rounds):
            for count in WATCHERS if number % 2 else WATCHERS[::-1]:
                async with watched(port, count):
                    began = perf_counter()
                    await asyncio.gather(*(stream(port, number * STREAMS + i, TOKENS) for i in range(STREAMS)))
                    found[count].append(STREAMS * TOKENS / (perf_counter() - began))
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
    alone = median(found[0])
    print(f"{processor()}: {STREAMS} streams of {TOKENS} tokens over two nodes of one thread, medians of {rounds} rounds\n")
    print("| consoles | tokens/s | of those without |\n|---|---|---|")
    for count, ran in found.items():
        print(f"| {count} | {median(ran):.1f} | {median(ran) / alone:.3f} |")
    spent, step = remembering(), STREAMS / alone * 1e6
    print(f"\nremembering a step: {spent:.0f} µs, {spent / step:.2%} of the {step / 1e3:.1f} ms of a step")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    asyncio.run(main(parser.parse_args().rounds))
