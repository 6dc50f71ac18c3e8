"""What copies of a model give: `python -m benchmarks.fleet [--rounds 3] [--model smollm2-135m] [--only scaling]`.

Nodes of one thread each. Two copies on two nodes against one copy on one node: tokens per second of 8 to 64 streams (a copy
runs 32 at once), and of prompts. Then
conversations over two copies: how much of their prompts is found in the copies' caches with the balancer that looks for prefixes and with
round robin, beside one copy. Last the time to the first token where one of two copies is stopped for 4/5 of the time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import AsyncIterator
from random import Random
from statistics import median, quantiles
from time import perf_counter

from benchmarks import ours
from benchmarks.report import processor
from shoal.config import Balancing
from shoal.launch.local import LocalCluster
from shoal.node.head import Head
from shoal.request import Request, RequestId, SamplingParams

CONVERSATIONS, TURNS, SYSTEM, SAID, ANSWER = 16, 5, 192, 48, 24
"""Conversations, and the turns of each; tokens of what all begin with, of what is said in a turn, and of an answer."""
_names = itertools.count()


async def answered(head: Head, prompt: list[int], tokens: int) -> tuple[float, list[int]]:
    """Seconds to the first token, and the answer: through the balancer, as the API asks."""
    name, began, first, said = f"fleet-{next(_names)}", perf_counter(), 0.0, list[int]()
    (stream,) = await head.engine.begin(name, b"", [Request(RequestId(name), prompt, tokens, SamplingParams(temperature=0.0))], False)
    try:
        async for chunk in stream:
            first = first or perf_counter() - began
            said += [chunk.token] if chunk.token is not None else []
    finally:
        head.engine.forget(name)
    return first, said


async def together(head: Head, streams: int, prompt: int, tokens: int) -> float:
    """Tokens per second of so many streams with distinct prompts, from the first request to the last token. prompt: tokens; those count
    if the answers have one token."""
    began = perf_counter()
    await asyncio.gather(*(answered(head, ours.fresh_prompt(head, prompt), tokens) for _ in range(streams)))
    return streams * (tokens if tokens > 1 else prompt) / (perf_counter() - began)


async def conversation(head: Head, rng: Random, shared: list[int]) -> tuple[int, list[float]]:
    """Tokens of its prompts, and the seconds to the first token of each turn."""
    history, asked, firsts = list(shared), 0, list[float]()
    for _ in range(TURNS):
        await asyncio.sleep(rng.expovariate(4))
        history += [rng.randrange(head.engine.vocabulary) for _ in range(SAID)]
        asked += len(history)
        first, said = await answered(head, history, ANSWER)
        firsts.append(first)
        history += said
    return asked, firsts


async def talked(head: Head, seed: int) -> tuple[float, list[float]]:
    """The share of all prompt tokens that was found in caches, and the seconds to first tokens."""
    rng = Random(seed)
    shared = [rng.randrange(head.engine.vocabulary) for _ in range(SYSTEM)]
    before = cached(head)
    done = await asyncio.gather(*(conversation(head, Random(f"{seed} {i}"), shared) for i in range(CONVERSATIONS)))
    return (cached(head) - before) / sum(asked for asked, _ in done), [first for _, firsts in done for first in firsts]


def cached(head: Head) -> int:
    return sum(runner.driver.scheduler.counters.cached_tokens for runner in head.engine.copies if runner.driver is not None)


@contextlib.asynccontextmanager
async def copies(model: str, count: int, balance: Balancing = Balancing.PREFIX) -> AsyncIterator[LocalCluster]:
    async with ours.cluster(model, count, 1, replicas=count, balance=balance) as cluster:
        while any(not runner.serving for runner in cluster.head.engine.copies):  # noqa: ASYNC110 - of several copies
            await asyncio.sleep(0.1)
        yield cluster


@contextlib.asynccontextmanager
async def slowed(cluster: LocalCluster) -> AsyncIterator[None]:
    """One of its nodes runs for a fifth of the time."""
    pid = cluster.children[0].process.pid

    async def work() -> None:
        while True:
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(0.04)
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(0.01)

    working = asyncio.ensure_future(work())
    try:
        yield
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        os.kill(pid, signal.SIGCONT)


async def scaling(model: str, rounds: int) -> None:
    kinds = (("8 streams", 8, 32, 64), ("16 streams", 16, 32, 64), ("64 streams", 64, 32, 64), ("8 prompts of 512", 8, 512, 1))
    found = {name: ([], []) for name, *_ in kinds}
    async with copies(model, 1) as one, copies(model, 2) as two:
        for _ in range(rounds):
            for name, *how in kinds:
                for cluster, values in zip((one, two), found[name], strict=True):
                    values.append(await together(cluster.head, *how))
    print(f"{model}, tokens/s, nodes of 1 thread, medians of {rounds}; {processor()}")
    for name, (alone, both) in found.items():
        print(f"  {name:18} one copy {median(alone):7.1f}   two copies {median(both):7.1f}   ratio {median(both) / median(alone):.2f}")


async def caching(model: str, rounds: int) -> None:
    shares: dict[str, list[float]] = {}
    for name, count, balance in (
        ("one copy", 1, Balancing.PREFIX),
        ("two, prefix", 2, Balancing.PREFIX),
        ("two, round robin", 2, Balancing.ROUND_ROBIN),
    ):
        async with copies(model, count, balance) as cluster:
            shares[name] = [(await talked(cluster.head, seed))[0] for seed in range(rounds)]
    alone = median(shares["one copy"])
    print(f"{CONVERSATIONS} conversations of {TURNS} turns, share of prompt tokens found in caches, medians of {rounds}")
    for name, found in shares.items():
        print(f"  {name:18} {median(found):6.1%}   of one copy's: {median(found) / alone:.2f}")


async def slow(model: str, rounds: int) -> None:
    print(f"first token where one of two copies runs a fifth of the time, {rounds} rounds")
    for balance in (Balancing.LEAST_LATENCY, Balancing.PREFIX, Balancing.ROUND_ROBIN):
        async with copies(model, 2, balance) as cluster, slowed(cluster):
            firsts = [first for seed in range(rounds) for first in (await talked(cluster.head, 100 + seed))[1]]
        cuts = quantiles(firsts, n=100)
        print(f"  {balance.value:18} p50 {1e3 * cuts[49]:7.1f} ms   p99 {1e3 * cuts[98]:7.1f} ms")


PARTS = {"scaling": scaling, "caching": caching, "slow": slow}


async def main(rounds: int, model: str, parts: list[str]) -> None:
    for part in parts or PARTS:
        await PARTS[part](model, rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--only", choices=PARTS, action="append", default=[], help="one of the three parts")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.rounds, arguments.model, arguments.only))
