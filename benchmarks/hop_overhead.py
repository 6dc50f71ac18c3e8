"""What head, wire and Python add to a token, per hop, on loopback: the breakdown of a one-row step.

python -m benchmarks.hop_overhead [--nodes 2]
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from benchmarks import ours
from shoal.models.sources import pull


async def main(nodes: int, tokens: int) -> None:
    async with ours.cluster(str(pull("smollm2-135m")), nodes, 1) as cluster:
        head = cluster.head
        head.engine.forget_timings()
        for _ in range(3):
            await ours.generate(head, ours.fresh_prompt(head, 32), tokens)
        summary: dict[str, Any] = head.engine.timings(rows=1)
    stages = summary["stages"]
    print(f"### {nodes} nodes of 1 thread, one stream, medians of {summary['steps']} steps, ms", end="\n\n")
    print("| part | where | ms |\n|---|---|---|")
    for part in ("schedule", "encode", "send", "apply"):
        print(f"| {part} | head | {summary[part] * 1e3:.3f} |")
    for i, stage in enumerate(stages):
        for part in ("wait", "prepare", "compute", "sample", "encode"):
            print(f"| {part} | stage {i} | {stage[part] * 1e3:.3f} |")
    print(f"| sockets, wake-ups | {nodes + 1} links | {summary['hops'] * 1e3:.3f} |")
    print(f"\nadded per hop: {summary['overhead_per_hop'] * 1e3:.3f} ms ({nodes + 1} hops; goal 0.4 ms)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=200)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.nodes, arguments.tokens))
