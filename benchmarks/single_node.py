"""One node against llama.cpp on the same GGUF file, same threads, rounds interleaved; and against llama.cpp's own Q8_0 of it.

python -m benchmarks.single_node [--rounds 5] [--threads 2] [--model smollm2-135m] [--isa avx2]

With --isa both run that instruction set: llama.cpp the library that it has for it.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from benchmarks import ours, peers
from benchmarks.report import Figure, check, table
from shoal.config import INSTRUCTION_SETS
from shoal.models.sources import pull

Goals = tuple[float, float, float]
"""Ratios: of decoding one stream, eight streams, and of prefill."""


async def beside(model: Path, rivals: dict[str, tuple[Path, Goals]], rounds: int, threads: int, isa: str = "") -> dict[str, list[Figure]]:
    """Our figures of a file beside llama.cpp's of each rival's file. isa: of both; empty: the best one of each."""
    names = ("decode, 1 stream", "decode, 8 streams", "prefill of 512")
    figures = {rival: [Figure(name, goal) for name, goal in zip(names, goals, strict=True)] for rival, (_, goals) in rivals.items()}
    async with ours.cluster(str(model), 1, threads, {"isa": isa}) as cluster:
        head = cluster.head
        for _ in range(rounds):
            mine = (await ours.decode(head, 1, 128), await ours.decode(head, 8, 64), await ours.prefill(head))
            for rival, (path, _) in rivals.items():
                prompt, decode = await asyncio.to_thread(peers.single, path, threads, isa=isa)
                eight = await asyncio.to_thread(peers.eight, path, threads, isa=isa)
                for figure, us, them in zip(figures[rival], mine, (decode, eight, prompt), strict=True):
                    figure.ours.append(us)
                    figure.theirs.append(them)
    return figures


async def main(rounds: int, threads: int, model: str, isa: str) -> list[Figure]:
    file = pull(model)
    rivals: dict[str, tuple[Path, Goals]] = {
        "the same file": (file, (1.2, 1.7, 2.5)),
        "its Q8_0": (peers.quantised(file, "Q8_0"), (1.0, 1.4, 1.8)),
    }
    figures = await beside(file, rivals, rounds, threads, isa)
    for rival, rows in figures.items():
        how = f"{threads} threads{f' of {isa}' if isa else ''}"
        print(table(f"{model}, {how}, against llama.cpp on {rival}, medians of {rounds}", rows), end="\n\n")
    return [figure for rows in figures.values() for figure in rows]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--isa", choices=INSTRUCTION_SETS, default="", help="of both; default: the best one of each")
    parser.add_argument("--check", action="store_true", help="fail where a goal is missed")
    arguments = parser.parse_args()
    check(asyncio.run(main(arguments.rounds, arguments.threads, arguments.model, arguments.isa)), arguments.check)
