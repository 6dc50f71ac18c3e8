"""One answer runs, prompts of 8,000 tokens arrive: how long its tokens keep a client waiting, and what the prompts get.

python -m benchmarks.beside [--nodes 1,2] [--prompts 1,6] [--length 8000] [--seconds 60]

Over HTTP, streamed, with the flags that `shoal up` has by default but for the number of slots. All is cut off after --seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from statistics import median

from benchmarks import load, ours
from benchmarks.traffic import Arrival, prompt
from shoal.models.description import describe
from shoal.models.sources import pull

CONTEXT, SLOTS = 8192, 8
_ALONE = 3.0  # seconds for which the answer runs alone first


@dataclass(frozen=True)
class Beside:
    """Times in seconds."""

    usual: float
    """Between two tokens of the answer before the prompts came."""
    longest: float
    """Between two tokens from then on."""
    tokens: int
    """Of the answer, from then on."""
    during: float
    firsts: list[float]
    """Of those prompts that came to a first token: how long that took."""


def beside(port: int, prompts: int, length: int, seconds: float, vocabulary: int, seed: str) -> Beside:
    """The prompts come at once. What is observed ends when all have their first tokens, or after `seconds`."""
    chance = Random(seed)
    load.run(load.Plan("127.0.0.1", port, [Arrival(0, prompt(chance, 16, vocabulary), 16)]))  # what was cut off before has left the pipe
    late = [Arrival(_ALONE, prompt(chance, length, vocabulary), 1) for _ in range(prompts)]
    answer = Arrival(0, prompt(chance, 16, vocabulary), CONTEXT - 64)
    running, *outcomes = load.run(load.Plan("127.0.0.1", port, [answer, *late], until=_ALONE + seconds)).outcomes
    begun = outcomes[0].sent
    firsts = [o.first for o in outcomes if o.events and o.first <= seconds]
    end = begun + (max(firsts) if len(firsts) == prompts else seconds)
    pairs = list(zip(running.events, running.events[1:], strict=False))
    before = [b - a for a, b in pairs if b <= begun]
    after = [b - a for a, b in pairs if b > begun and a < end]
    silent = end - max((t for t in running.events if t <= end), default=begun)  # the last wait may not have ended
    if not before:
        raise SystemExit("the answer had not begun when the prompts came: the machine is too slow for this")
    return Beside(median(before), max([*after, silent]), sum(begun < t <= end for t in running.events), end - begun, firsts)


def lines(model: str, nodes: list[int], counts: list[int], threads: int, length: int, seconds: float) -> Iterator[str]:
    """Of a table."""
    file, vocabulary = pull(model), describe(model).spec.vocabulary
    yield "| nodes | prompts | usual, ms | longest wait for a token, ms | tokens | in, s | first tokens of the prompts, s |"
    yield "|---|---|---|---|---|---|---|"
    for number in nodes:
        with ours.server(file, number, threads, SLOTS, CONTEXT) as port:
            for count in counts:
                found = beside(port, count, length, seconds, vocabulary, f"{number} {count}")
                firsts = ", ".join(f"{first:.1f}" for first in sorted(found.firsts)) or "none"
                cells = [
                    number,
                    count,
                    f"{found.usual * 1e3:.0f}",
                    f"{found.longest * 1e3:.0f}",
                    found.tokens,
                    f"{found.during:.0f}",
                    firsts,
                ]
                yield "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--nodes", type=lambda text: [int(part) for part in text.split(",")], default=[1, 2])
    parser.add_argument("--prompts", type=lambda text: [int(part) for part in text.split(",")], default=[1, 6])
    parser.add_argument("--length", type=int, default=8000)
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    for line in lines(given.model, given.nodes, given.prompts, given.threads, given.length, given.seconds):
        print(line, flush=True)
