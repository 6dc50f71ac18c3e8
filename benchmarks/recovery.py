"""What the loss of a node costs: three stages and a spare, the middle one killed while a stream runs; and what journals cost meanwhile.

python -m benchmarks.recovery [--rounds 3] [--contexts 256,1024,4096] [--threads 1]

python -m benchmarks.recovery --fleet [--rounds 3]: what a client waits when a node, a copy, a head or the keeper of the lease is killed.

Recomputing everything is measured in the same run: the time to the first token of a fresh prompt of the same length.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter

from benchmarks import losses, ours
from shoal.config import KvType, Precision, RuntimeName
from shoal.executor.journal import JournalLimits
from shoal.executor.runtimes import factory
from shoal.executor.shard import Shard
from shoal.executor.stage import StageExecutor
from shoal.launch.local import LocalCluster
from shoal.models.sources import pull
from shoal.models.weights import open_weights
from shoal.node.head import Head
from shoal.node.interruption import Interruption
from shoal.request import Request, RequestId, SamplingParams
from shoal.scheduler.plan import Chunk, StepPlan

_PARTS = ("detect", "fence", "load", "link", "refill", "resume", "pause")


async def interrupted(cluster: LocalCluster, context: int) -> dict[str, float]:
    """Seconds of each part of an interruption at so many tokens of context."""
    head = cluster.head
    interruptions = watched(head)
    prompt = ours.fresh_prompt(head, context)
    stream = head.engine.submit(Request(RequestId(f"killed-{context}-{prompt[0]}"), prompt, 64, SamplingParams(temperature=0.0)))
    arrivals: list[float] = []
    killed = 0.0
    async for _ in stream:
        arrivals.append(monotonic())
        if len(arrivals) == 8:
            assert head.placement is not None
            middle = head.placement.stages[1].node
            killed = monotonic()
            next(child for child in cluster.children if child.name == middle).process.kill()
    (ended,) = interruptions
    return {"detect": ended.began - killed, **ended.parts(), "pause": ended.resumed - killed}


def watched(head: Head) -> list[Interruption]:
    """The interruptions that the head is told of from now on."""
    told: list[Interruption] = []
    observer = head.engine.copies.first.observer
    count = observer.interruption

    def interruption(ended: Interruption, cause: str) -> None:
        told.append(ended)
        count(ended, cause)

    observer.interruption = interruption
    return told


async def round_of(model: str, context: int, threads: int, journals: bool) -> dict[str, float]:
    sizes = {} if journals else {"journal": "0", "journal_disk": "0"}
    async with ours.cluster(model, 4, threads, node=sizes, spares=1, context=8192, heartbeat=0.5) as cluster:
        recompute, _ = await ours.generate(cluster.head, ours.fresh_prompt(cluster.head, context), 1)
        return {**await interrupted(cluster, context), "recompute": recompute}


def overhead(path: Path, threads: int, rounds: int) -> list[tuple[str, float, float]]:
    """Tokens per second of a stage of ten layers with its journal and without: each step on both in turn, medians over all."""
    weights = open_weights(path)
    make = factory(RuntimeName.NATIVE, Precision.AUTO, KvType.BF16, threads=threads)
    stages: list[StageExecutor] = []
    for limits in (JournalLimits(1 << 28), JournalLimits()):
        shard = Shard(make, journals=limits)
        shard.load(range(10), weights)
        stages.append(shard.enter(range(10), range(0), 64))
    decoding: tuple[list[float], list[float]] = ([], [])
    prefilling: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds):
        first = 1000 * i
        tokens = [(j * 7919 + first) % 40000 for j in range(256)]
        for step in range(4):
            in_turn(stages, StepPlan(step, [], [first], [], [], [Chunk(first, 0, tokens, list(range(8)), False)]), prefilling)
        rows = [first + 1 + j for j in range(8)]
        for step in range(64):
            fresh = step % 32 == 0
            chunks = [Chunk(row, step, [tokens[step]], [8 + 4 * j + step // 32] if fresh else [], False) for j, row in enumerate(rows)]
            in_turn(stages, StepPlan(step, [], [], [], [], chunks), decoding)
        for stage in stages:
            stage.run(StepPlan(0, [], [first, *rows], [], [], []), None)
    named = (("decode, 8 rows", 8, decoding), ("prefill, 256 rows", 256, prefilling))
    return [(name, count / median(kept), count / median(bare)) for name, count, (kept, bare) in named]


def in_turn(stages: list[StageExecutor], plan: StepPlan, seconds: tuple[list[float], list[float]]) -> None:
    for which in (0, 1) if len(seconds[0]) % 2 else (1, 0):
        began = perf_counter()
        stages[which].run(plan, None)
        seconds[which].append(perf_counter() - began)


async def main(contexts: list[int], threads: int, rounds: int) -> None:
    path = pull("smollm2-135m")
    model = str(path)
    print(f"### A stage is killed; 3 stages and a spare of {threads} thread(s), one stream; ms, medians of {rounds}\n")
    print("| context | journals | " + " | ".join(_PARTS) + " | all recomputed | refill is |\n|" + "---|" * (len(_PARTS) + 4))
    for context in contexts:
        for journals in (True, False):
            taken = [await round_of(model, context, threads, journals) for _ in range(rounds)]
            figures = {name: median(t.get(name, 0.0) for t in taken) for name in (*_PARTS, "recompute")}
            cells = " | ".join(f"{figures[name] * 1e3:.0f}" for name in _PARTS)
            ratio = figures["recompute"] / figures["refill"] if figures["refill"] else 0.0
            print(
                f"| {context} | {'yes' if journals else 'no'} | {cells} | {figures['recompute'] * 1e3:.0f} | {ratio:.2f} x faster |",
                flush=True,
            )
    print("\ngoals at context 1024: pause < 1500 ms, detect <= 500 ms, refill >= 1.5 x faster\n")
    print("### What journals cost while nothing fails, tokens/s\n\n| | with | without | |\n|---|---|---|---|")
    for name, kept, bare in overhead(path, threads, 15):
        print(f"| {name} | {kept:.0f} | {bare:.0f} | {(kept / bare - 1) * 100:+.1f} % |")
    print("\ngoal: >= -3 %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contexts", default="256,1024,4096")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fleet", action="store_true", help="instead: kill a node, a copy, heads and the keeper of their lease")
    given = parser.parse_args()
    if given.fleet:
        losses.table(given.rounds)
        sys.exit()
    asyncio.run(main([int(c) for c in given.contexts.split(",")], given.threads, given.rounds))
