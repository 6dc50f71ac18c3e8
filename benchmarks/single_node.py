"""One node against llama.cpp on the same GGUF file, same threads, rounds interleaved; and against llama.cpp's own Q8_0 of it. Then what share of
the memory's reading speed decode of one stream reaches: bytes of weights that a token reads, times tokens per second, over what `shoal doctor`
measures.

python -m benchmarks.single_node [--rounds 5] [--threads 2] [--model smollm2-135m] [--isa avx2]

With --isa both run that instruction set: llama.cpp the library that it has for it.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from statistics import median

from benchmarks import ours, peers
from benchmarks.report import Figure, check, table
from shoal.config import INSTRUCTION_SETS, KvType, Precision
from shoal.executor.cost import model_cost
from shoal.executor.memory_read import streaming_read
from shoal.models.description import describe
from shoal.models.matrix import stored_bytes
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


def token_bytes(model: Path) -> tuple[int, int]:
    """Bytes of weights that a token of one stream reads of a dense model: as executed, and as the file has them."""
    description = describe(str(model))
    spec, weights = description.spec, description.weights
    assert weights is not None, "a GGUF file is here whole"
    shapes = {f"layers.{i}.{name}": shape for i in range(len(spec.layers)) for name, shape in spec.matrices(i).items()}
    shapes["head"] = spec.vocabulary, spec.hidden
    cost = model_cost(spec, weights, Precision.AUTO, KvType.BF16, 512)
    stored = sum(stored_bytes(weights.format(name), n * k) for name, (n, k) in shapes.items())
    return sum(layer.always.size for layer in cost.layers) + cost.head.size, stored


async def main(rounds: int, threads: int, model: str, isa: str) -> list[Figure]:
    file = pull(model)
    rivals: dict[str, tuple[Path, Goals]] = {
        "the same file": (file, (1.2, 1.7, 2.5)),
        "its Q8_0": (peers.quantised(file, "Q8_0"), (1.0, 1.4, 1.8)),
    }
    before = streaming_read(threads)
    figures = await beside(file, rivals, rounds, threads, isa)
    reading = max(before, streaming_read(threads))
    for rival, rows in figures.items():
        how = f"{threads} threads{f' of {isa}' if isa else ''}"
        print(table(f"{model}, {how}, against llama.cpp on {rival}, medians of {rounds}", rows), end="\n\n")
    executed, stored = token_bytes(file)
    reached = executed * median(figures["the same file"][0].ours)
    print(
        f"A token reads {executed / 1e6:.0f} MB of weights ({stored / 1e6:.0f} MB in the file); decode of one stream reads "
        f"{reached / 1e9:.1f} GB/s, {reached / reading:.0%} of the {reading / 1e9:.1f} GB/s of a plain streaming read"
    )
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
