"""Mixture-of-Experts models on one node against llama.cpp on the same GGUF file, same threads, rounds interleaved.

python -m benchmarks.moe [--rounds 5] [--threads 2] [--models small-q4_0 small-q8_0 large-q4_0]

small: SmolLM2-135M with eight experts that differ, two of them chosen. large: OLMoE-1B-7B's shape with random weights, 4 GB.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from pathlib import Path

from benchmarks import peers, random_moe
from benchmarks.report import Figure, check, processor, table
from benchmarks.single_node import beside
from shoal.models.sources import pull
from tests.support import upcycled

_DENSE = "smollm2-135m"
GOALS = (1.1, 1.5, 1.5)


def _small(format: str) -> Path:
    return peers.quantised(upcycled.mixtral(pull(_DENSE), "perturbed"), format)


MODELS: dict[str, tuple[str, Callable[[], Path]]] = {
    "small-q4_0": ("SmolLM2-135M as Mixtral of 8 experts, Q4_0", lambda: _small("Q4_0")),
    "small-q8_0": ("SmolLM2-135M as Mixtral of 8 experts, Q8_0", lambda: _small("Q8_0")),
    "large-q4_0": ("random weights in OLMoE-1B-7B's shape, Q4_0", lambda: random_moe.write(random_moe.OLMOE, pull(_DENSE))),
}


async def main(names: list[str], rounds: int, threads: int) -> list[Figure]:
    every: list[Figure] = []
    for name in names:
        title, made = MODELS[name]
        file = made()
        figures = (await beside(file, {"the same file": (file, GOALS)}, rounds, threads))["the same file"]
        print(table(f"{title}, {threads} threads of {processor()}, medians of {rounds}", figures), end="\n\n", flush=True)
        every += [Figure(f"{name}, {figure.name}", figure.goal, figure.ours, figure.theirs) for figure in figures]
    return every


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="fail where a goal is missed")
    arguments = parser.parse_args()
    check(asyncio.run(main(arguments.models, arguments.rounds, arguments.threads)), arguments.check)
