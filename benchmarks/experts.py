"""Experts on workers against a layer pipeline over the same nodes, one thread each, same file, rounds interleaved.

python -m benchmarks.experts [--nodes 2] [--workers 1] [--rounds 3] [--streams 1 8 32] [--model even|small|FILE.gguf] [--share 0.7]

Tokens per second of so many streams; and, of the stages with workers: the time of a layer's round trip to a worker and what of it the worker
computes, the bytes of a layer's question and answer, and the share of the time in which stages have nothing to do but wait. Each node
has memory for a share of the file: with less than 1 a single stage cannot hold all experts, so that some are on workers in any case. The file:
random weights in Qwen3-MoE's shape, 6 GB, or SmolLM2-135M with eight experts. Tokens are random.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

from benchmarks import ours, random_moe
from benchmarks.report import processor
from shoal.models.sources import pull
from shoal.node.head import Head
from shoal.request import SamplingParams
from tests.support import upcycled

_SAMPLED = SamplingParams(temperature=1.0)
_BESIDE = 500 << 20
"""Bytes for what is not weights."""
_TOKENS = {1: 96, 8: 64, 32: 256}


def file_of(model: str) -> Path:
    match model:
        case "even":
            return random_moe.write(random_moe.QWEN3, pull("smollm2-135m"))
        case "small":
            return upcycled.mixtral(pull("smollm2-135m"), "perturbed")
        case _:
            return Path(model)


def described(head: Head) -> str:
    """Who holds what."""
    placement = head.placement
    assert placement is not None
    stages = [f"layers {stage.first}-{stage.end - 1}" for stage in placement.stages]
    return ", ".join([*stages, *(f"{sum(map(len, plan.table))} experts" for plan in placement.workers)])


class Asked(NamedTuple):
    """Of all stages together, per frame to a worker but for `waiting`."""

    round_trip: float
    computed: float
    """Seconds."""
    sent: float
    received: float
    """Bytes."""
    waiting: float
    """The share of the time."""


async def asked(head: Head) -> dict[str, float]:
    """By metric: summed over the nodes."""
    out: dict[str, float] = {}
    for line in (await head.scrape()).decode().splitlines():
        if line.startswith("shoal_dispatch_"):
            name = line[len("shoal_dispatch_") :].partition("{")[0].removesuffix("_total")
            out[name] = out.get(name, 0.0) + float(line.rpartition(" ")[2])
    return out


async def one_stream(head: Head) -> Asked | None:
    """None: nobody was asked."""
    await asyncio.sleep(2 * head.coordinator.settings.heartbeat)
    before, began = await asked(head), perf_counter()
    await ours.steady(head, 1, _TOKENS[1], _SAMPLED)
    took = perf_counter() - began
    await asyncio.sleep(2 * head.coordinator.settings.heartbeat)
    found = {name: value - before.get(name, 0.0) for name, value in (await asked(head)).items()}
    if not (count := found.get("answers", 0.0)):
        return None
    return Asked(
        found["round_trip_seconds"] / count,
        found["computed_seconds"] / count,
        found["sent_bytes"] / count,
        found["received_bytes"] / count,
        found["waited_seconds"] / took,
    )


async def speeds(head: Head, streams: list[int]) -> list[float]:
    return [await ours.steady(head, count, _TOKENS.get(count, 48), _SAMPLED) for count in streams]


async def main(model: str, nodes: int, workers: int, rounds: int, streams: list[int], share: float) -> None:
    file = file_of(model)
    node = {"memory": str(round(file.stat().st_size * share) + _BESIDE)}
    settings: dict[str, Any] = {"slots": max(streams), "context": 1024, "kv_tokens": max(streams) * 384}
    found: dict[str, list[list[float]]] = {"pipeline": [], "workers": []}
    layout: dict[str, str] = {}
    trips: list[Asked] = []
    for _ in range(rounds):
        for way, some in (("pipeline", 0), ("workers", workers)):
            async with ours.cluster(str(file), nodes, 1, node, workers=some, **settings) as cluster:
                await ours.steady(cluster.head, 1, 32, _SAMPLED)
                found[way].append(await speeds(cluster.head, streams))
                layout[way] = described(cluster.head)
                if some and (one := await one_stream(cluster.head)) is not None:
                    trips.append(one)
    print(f"### {file.stem}, {nodes} nodes of one thread of {processor()}, medians of {rounds}\n")
    for way, words in layout.items():
        print(f"{way}: {words}")
    print("\n| streams | workers, tokens/s | pipeline, tokens/s | ratio |\n|---|---|---|---|")
    for i, count in enumerate(streams):
        mine, its = (median(round[i] for round in found[way]) for way in ("workers", "pipeline"))
        print(f"| {count} | {mine:.1f} | {its:.1f} | {mine / its:.2f} |", flush=True)
    if trips:
        usual = Asked(*(median(values) for values in zip(*trips, strict=True)))
        print(
            f"\none stream, a layer's question: round trip {usual.round_trip * 1e6:.0f} us, of which the worker computes "
            f"{usual.computed * 1e6:.0f} us; {usual.sent:.0f} bytes out, {usual.received:.0f} back; stages wait {usual.waiting:.0%} of the time"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="of the nodes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--model", default="even")
    parser.add_argument("--share", type=float, default=0.7, help="of the file, that a node has memory for")
    given = parser.parse_args()
    asyncio.run(main(given.model, given.nodes, given.workers, given.rounds, given.streams, given.share))
