"""What placement predicts for decode steps and prompts, beside what they take: one node, some numbers of rows.

    python -m benchmarks.prediction [--model smollm2-135m]... [--threads 2]

For a model with experts the prediction holds for routing without favourites.
"""

from __future__ import annotations

import argparse
from statistics import median
from time import perf_counter

from benchmarks.scaling import loaded, pool_tokens, step_seconds
from shoal.config import KvType, Precision
from shoal.executor.cost import model_cost
from shoal.executor.measure import measure
from shoal.executor.stage import StageExecutor
from shoal.models.sources import pull
from shoal.models.weights import open_weights
from shoal.native import BLOCK_TOKENS
from shoal.placement.partition import Costs
from shoal.placement.profile import Demand, NodeProfile
from shoal.request import SamplingParams
from shoal.scheduler.plan import Chunk, Opened, StepPlan

ROWS, CONTEXT, PROMPT = (1, 2, 4, 8, 16, 32), 256, 512


def prompt_seconds(executor: StageExecutor) -> float:
    """The median of some prompts, each computed in one step."""
    seconds: list[float] = []
    for sequence in range(10_000, 10_005):
        tokens = [5 + (31 * i) % 4000 for i in range(PROMPT)]
        chunk = Chunk(sequence, 0, tokens, list(range(PROMPT // BLOCK_TOKENS)), True)
        began = perf_counter()
        executor.run(StepPlan(0, [Opened(sequence, SamplingParams(temperature=0.0), [], [])], [], [], [], [chunk]), None)
        seconds.append(perf_counter() - began)
        executor.run(StepPlan(1, [], [sequence], [], [], []), None)
    return median(seconds[1:])


def predictions(model: str, threads: int) -> None:
    weights = open_weights(pull(model))
    cost = model_cost(weights.spec, weights, Precision.AUTO, KvType.BF16, PROMPT)
    executor = loaded(weights, threads, pool_tokens(max(ROWS), max(CONTEXT, PROMPT)))
    speed = measure(threads)
    node, end = NodeProfile("here", cost.held_bytes, speed.bytes_per_second, speed.flops), len(cost.layers)

    def show(step: str, predicted: float, took: float) -> None:
        print(f"| {model} | {step} | {predicted * 1e3:.2f} | {took * 1e3:.2f} | {predicted / took:.2f} |")

    for rows in ROWS:
        costs = Costs(cost, Demand(rows, 0, 0, CONTEXT), stages=1)
        show(f"decode, {rows} rows", costs.seconds(node, 0, end), step_seconds(executor, rows, CONTEXT, 100 * rows))
    costs = Costs(cost, Demand(1, 0, 0), stages=1)
    show(f"prompt of {PROMPT}", PROMPT * costs.prefill_seconds(node, 0, end), prompt_seconds(executor))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", help="a name or a file; may be repeated (default smollm2-135m)")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    print("| model | step | predicted ms | measured ms | predicted / measured |\n|---|---|---|---|---|")
    for name in arguments.model or ["smollm2-135m"]:
        predictions(name, arguments.threads)
