"""Two nodes of one thread against llama.cpp RPC with two servers of one thread, same GGUF file, rounds interleaved.

python -m benchmarks.two_nodes [--rounds 5]
"""

from __future__ import annotations

import argparse
import asyncio

from benchmarks import ours, peers
from benchmarks.report import Figure, check, table
from shoal.models.sources import pull


async def main(rounds: int, model: str) -> list[Figure]:
    file = pull(model)
    figures = [Figure("decode, 1 stream", 1.5), Figure("decode, 8 streams", 2.5), Figure("prefill of 512", 3.0)]
    with peers.rpc_servers(2, 1) as rpc:
        async with ours.cluster(str(file), 2, 1) as cluster:
            head = cluster.head
            for _ in range(rounds):
                mine = (await ours.decode(head, 1, 128), await ours.decode(head, 8, 64), await ours.prefill(head))
                prompt, decode = await asyncio.to_thread(peers.single, file, 1, rpc)
                eight = await asyncio.to_thread(peers.eight, file, 1, rpc)
                for figure, us, them in zip(figures, mine, (decode, eight, prompt), strict=True):
                    figure.ours.append(us)
                    figure.theirs.append(them)
    print(table(f"{model}, two nodes of 1 thread, against llama.cpp RPC with two servers of 1 thread, medians of {rounds}", figures))
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--check", action="store_true", help="fail where a goal is missed")
    arguments = parser.parse_args()
    check(asyncio.run(main(arguments.rounds, arguments.model)), arguments.check)
