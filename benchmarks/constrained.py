"""What a grammar costs: tokens of JSON that a schema holds the model to, against the same streams without one, rounds interleaved.

python -m benchmarks.constrained [--nodes 2] [--rounds 9]
"""

from __future__ import annotations

import argparse
import asyncio
from statistics import median

from benchmarks import ours
from shoal.launch.local import LocalCluster
from shoal.models.sources import pull
from shoal.request import SamplingParams
from shoal.text import grammar

_TEXT = {"type": "string", "minLength": 20, "maxLength": 200}
_PERSON = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "age": {"type": "integer"},
        "role": {"enum": ["reader", "writer", "owner"]},
        "tags": {"type": "array", "items": _TEXT},
    },
    "required": ["name", "age", "role", "tags"],
    "additionalProperties": False,
}
_TOKENS = 64


def schema() -> str:
    """A list that is never full: every answer has as many tokens as were asked for."""
    return grammar.json_schema({"type": "array", "items": _PERSON, "minItems": 1000})


async def round_of(cluster: LocalCluster, streams: int, held: bool) -> float:
    """ms per token of each of some streams. Both kinds are sampled, greedily."""
    sampling = SamplingParams(temperature=0.0, grammar=schema() if held else "")
    return 1e3 * streams / await ours.decode(cluster.head, streams, _TOKENS, sampling)


async def main(nodes: int, rounds: int, threads: int) -> None:
    async with ours.cluster(str(pull("smollm2-135m")), nodes, threads, pace=0) as cluster:
        print(f"### {nodes} nodes of {threads} threads, medians of {rounds}, ms a token", end="\n\n")
        print("| streams | free | held to a schema | ratio (goal 1.10) |\n|---|---|---|---|")
        for streams in (1, 8):
            await round_of(cluster, streams, True)
            pairs = [(await round_of(cluster, streams, False), await round_of(cluster, streams, True)) for _ in range(rounds)]
            free, held = (median(times) for times in zip(*pairs, strict=True))
            print(f"| {streams} | {free:.2f} | {held:.2f} | {held / free:.3f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.nodes, arguments.rounds, arguments.threads))
