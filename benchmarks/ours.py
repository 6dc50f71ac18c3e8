"""shoal, measured as it is used: a head, node processes, sockets between them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from time import perf_counter

from benchmarks.peers import free_port, until_healthy
from shoal.config import HeadSettings, NodeSettings, composed
from shoal.launch.local import LocalCluster, local_cluster
from shoal.models.description import describe
from shoal.node.head import Head
from shoal.node.model_engine import ModelOffer
from shoal.request import Request, RequestId, SamplingParams

_names = itertools.count()


@contextlib.asynccontextmanager
async def cluster(
    model: str, nodes: int, threads: int, node: dict[str, str] | None = None, workers: int = 0, **settings: object
) -> AsyncIterator[LocalCluster]:
    """node: settings of each node. workers: so many of the nodes hold experts alone. settings: of the head."""
    head = composed(HeadSettings, {"model": model, "port": 0, "control_port": 0, **settings})
    own = NodeSettings(threads=threads, **(node or {}))  # pyright: ignore[reportArgumentType]
    async with local_cluster(head, own, [ModelOffer(describe(model), head.engine, head.replicas or 1)], nodes, workers) as running:
        await running.until_ready()
        await generate(running.head, fresh_prompt(running.head, 16), 16)
        yield running


@contextlib.contextmanager
def server(model: Path, nodes: int, threads: int, slots: int, context: int) -> Iterator[int]:
    """`shoal up` as people run it, its nodes sharing the threads; the port of its API."""
    port = free_port()
    command = [sys.executable, "-m", "shoal", "up", "--model", model, "--nodes", str(nodes), "--threads", str(max(1, threads // nodes))]
    command += ["--slots", str(slots), "--context", str(context), "--kv-tokens", str(slots * context)]
    command += ["--port", str(port), "--control-port", str(free_port()), "--discovery", "none", "--state", "none"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until_healthy(process, port, "/health/ready")
        yield port
    finally:
        process.terminate()
        process.wait()


def fresh_prompt(head: Head, length: int) -> list[int]:
    """Tokens that no prompt had before, so that the prefix cache has no part in the figures."""
    salt = next(_names)
    return [(salt * 7919 + i * 104729 + 23) % head.engine.vocabulary for i in range(length)]


_GREEDY = SamplingParams(temperature=0.0)


async def generate(head: Head, prompt: list[int], tokens: int, sampling: SamplingParams = _GREEDY) -> tuple[float, float]:
    """Seconds to the first token and to the last."""
    began, first = perf_counter(), 0.0
    async for _ in head.engine.submit(Request(RequestId(f"bench-{next(_names)}"), prompt, tokens, sampling)):
        first = first or perf_counter() - began
    return first, perf_counter() - began


async def prefill(head: Head) -> float:
    """Tokens per second of a 512-token prompt."""
    first, _ = await generate(head, fresh_prompt(head, 512), 1)
    return 512 / first


async def decode(head: Head, streams: int, tokens: int, sampling: SamplingParams = _GREEDY) -> float:
    """Tokens per second of some streams together, after their first tokens (prompts of 32)."""
    prompts = [fresh_prompt(head, 32) for _ in range(streams)]
    times = await asyncio.gather(*(generate(head, prompt, tokens + 1, sampling) for prompt in prompts))
    begin = max(first for first, _ in times) if streams > 1 else times[0][0]
    return streams * tokens / (max(total for _, total in times) - begin)


async def steady(head: Head, streams: int, tokens: int, sampling: SamplingParams = _GREEDY) -> float:
    """Tokens per second of some streams while all of them run, however long their prompts (of 32) take: from when the last begins to when
    the first ends."""

    async def arrivals() -> list[float]:
        request = Request(RequestId(f"bench-{next(_names)}"), fresh_prompt(head, 32), tokens, sampling)
        return [perf_counter() async for _ in head.engine.submit(request)]

    times = await asyncio.gather(*(arrivals() for _ in range(streams)))
    begin, end = max(own[0] for own in times), min(own[-1] for own in times)
    if begin >= end:
        raise SystemExit(f"{tokens} tokens are too few: the first of {streams} streams ended before the last began")
    return sum(begin < at <= end for own in times for at in own) / (end - begin)
