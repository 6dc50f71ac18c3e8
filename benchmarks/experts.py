"""Experts on workers against a layer pipeline over the same nodes, one thread each, same file, rounds interleaved.

python -m benchmarks.experts [--nodes 2] [--workers 1] [--rounds 3] [--streams 1 8 32] [--model even|small|FILE.gguf]

Tokens per second of so many streams; and, of the stage with workers, in one stream: the time of a layer's round trip to the workers, the
bytes that a token sends and receives, and the share of the time in which the stage has nothing to do but wait. The file: random weights in
Qwen3-MoE's shape, 6 GB, or SmolLM2-135M with eight experts. Tokens are random.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import ours, random_moe
from benchmarks.report import processor
from shoal.models.sources import pull
from shoal.node.head import Head
from shoal.request import SamplingParams
from tests.support import upcycled

_SAMPLED = SamplingParams(temperature=1.0)
_TOKENS = {1: 96, 8: 64, 32: 128}


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


async def speeds(head: Head, streams: list[int]) -> list[float]:
    return [await ours.steady(head, count, _TOKENS.get(count, 48), _SAMPLED) for count in streams]


async def main(model: str, nodes: int, workers: int, rounds: int, streams: list[int]) -> None:
    file = file_of(model)
    settings: dict[str, Any] = {"slots": max(streams), "context": 1024, "kv_tokens": max(streams) * 256}
    found: dict[str, list[list[float]]] = {"pipeline": [], "workers": []}
    layout: dict[str, str] = {}
    for _ in range(rounds):
        for way, some in (("pipeline", 0), ("workers", workers)):
            async with ours.cluster(str(file), nodes, 1, workers=some, **settings) as cluster:
                await ours.steady(cluster.head, 1, 32, _SAMPLED)
                found[way].append(await speeds(cluster.head, streams))
                layout[way] = described(cluster.head)
    print(f"### {file.stem}, {nodes} nodes of one thread of {processor()}, medians of {rounds}\n")
    for way, words in layout.items():
        print(f"{way}: {words}")
    print("\n| streams | workers, tokens/s | pipeline, tokens/s | ratio |\n|---|---|---|---|")
    for i, count in enumerate(streams):
        mine, its = (median(round[i] for round in found[way]) for way in ("workers", "pipeline"))
        print(f"| {count} | {mine:.1f} | {its:.1f} | {mine / its:.2f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="of the nodes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--model", default="even")
    given = parser.parse_args()
    asyncio.run(main(given.model, given.nodes, given.workers, given.rounds, given.streams))
