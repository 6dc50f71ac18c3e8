"""Hit rates of the eviction policies on made-up routes, and what a policy costs a layer.

python -m benchmarks.eviction [--layers 48] [--steps 120] [--streams 1 --streams 8]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from time import perf_counter

import numpy as np

from benchmarks.report import processor
from shoal.weights.eviction import Eviction, LeastFrequent, LeastRecent
from shoal.weights.expected_use import ExpectedUse
from shoal.weights.oracle import Oracle
from shoal.weights.traces import FLAT, LOCAL, Locality, Visit, replay, routes

EXPERTS, CHOSEN, RESIDENT = 128, 8, (75, 50, 25, 10)
USES = {"flat": FLAT, "flat, repeated": Locality(0.0, 0.4), "local": LOCAL, "less local, repeated": Locality(1.0, 0.35)}


def policies(trace: list[list[Visit]], layers: int) -> dict[str, Callable[[], Eviction]]:
    return {
        "LRU": LeastRecent,
        "LFU 16": lambda: LeastFrequent(16),
        "LFU 256": lambda: LeastFrequent(256),
        "adaptive": lambda: ExpectedUse([EXPERTS] * layers),
        "oracle": lambda: Oracle([visit for visits in trace for visit in visits]),
    }


def rows(name: str, locality: Locality, streams: int, layers: int, steps: int) -> None:
    trace = routes(locality, steps, layers, EXPERTS, CHOSEN, streams, np.random.default_rng(0))
    warm_up = steps // 3
    touched = sum(len(needed) for visits in trace for _, needed in visits) / (steps * layers * EXPERTS)
    for resident in RESIDENT:
        figures: list[str] = []
        cost = 0.0
        for label, policy in policies(trace, layers).items():
            began = perf_counter()
            tally = replay(trace, [EXPERTS] * layers, resident * layers * EXPERTS // 100, policy(), warm_up)
            if label == "adaptive":
                cost = (perf_counter() - began) / (steps * layers)
            figures.append(f"{tally.hit_rate:.3f}")
        print(f"| {name} | {streams} | {touched:.0%} | {resident} % | {' | '.join(figures)} | {cost * 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--streams", type=int, action="append")
    arguments = parser.parse_args()
    print(f"{processor()}; {arguments.layers} layers of {EXPERTS} experts, {CHOSEN} chosen, hit rates after the first third\n")
    print("| use | streams | touched by a step | resident | LRU | LFU 16 | LFU 256 | adaptive | oracle | adaptive, µs per layer |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, locality in USES.items():
        for streams in arguments.streams or (1, 8, 32):
            rows(name, locality, streams, arguments.layers, arguments.steps)
