"""What a token costs as the work grows: decode time per step against context (128 to 4096) and slots (1 to 32), one node,
beside the limit that memory bandwidth sets: the weights and the keys and values that a step has to read.

    python -m benchmarks.scaling [--threads 2] [--plot docs/scaling.svg]
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from time import perf_counter

import numpy as np

from shoal.config import KvType, Precision, RuntimeName
from shoal.executor.cost import model_cost
from shoal.executor.runtimes import factory
from shoal.executor.shard import Shard
from shoal.executor.stage import StageExecutor
from shoal.models.sources import pull
from shoal.models.weights import Weights, open_weights
from shoal.native import BLOCK_TOKENS
from shoal.request import SamplingParams
from shoal.scheduler.plan import Chunk, Opened, StepPlan

CONTEXTS, SLOTS = (128, 256, 512, 1024, 2048, 4096), (1, 2, 4, 8, 16, 32)


def bandwidth(threads: int) -> float:
    """Bytes per second that so many threads read together."""
    arrays = [np.ones(1 << 26, np.float32) for _ in range(threads)]
    seconds: list[float] = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            began = perf_counter()
            list(pool.map(np.max, arrays))
            seconds.append(perf_counter() - began)
    return sum(a.nbytes for a in arrays) / min(seconds)


def loaded(weights: Weights, threads: int, tokens: int) -> StageExecutor:
    """All layers in one stage, with room for the keys and values of so many tokens."""
    layers = range(len(weights.spec.layers))
    shard = Shard(factory(RuntimeName.NATIVE, Precision.AUTO, bf16=True, threads=threads))
    shard.load(layers, weights)
    return shard.enter(layers, range(0), tokens // BLOCK_TOKENS)


def pool_tokens(slots: int, context: int) -> int:
    """Tokens of a pool that `step_seconds` needs."""
    return slots * _blocks(context) * BLOCK_TOKENS


def _blocks(context: int) -> int:
    return -(-(context + 16) // BLOCK_TOKENS)


def step_seconds(executor: StageExecutor, slots: int, context: int, first: int) -> float:
    """The median of some decode steps of `slots` sequences that are `context` tokens long (of zeros: their content costs nothing).
    Each row has another token, so that a router chooses experts for each."""
    per_slot = _blocks(context)
    greedy = SamplingParams(temperature=0.0)
    opened = [Opened(first + i, greedy, [], []) for i in range(slots)]
    seconds: list[float] = []
    for step in range(9):
        chunks = [
            Chunk(first + i, context + step, [5 + slots * step + i], [] if step else list(range(i * per_slot, (i + 1) * per_slot)), True)
            for i in range(slots)
        ]
        plan = StepPlan(step, [] if step else opened, [], [], [], chunks)
        began = perf_counter()
        executor.run(plan, None)
        seconds.append(perf_counter() - began)
    executor.run(StepPlan(99, [], [first + i for i in range(slots)], [], [], []), None)
    return median(seconds[2:])


def main(threads: int, plot: str) -> None:
    weights = open_weights(pull("smollm2-135m"))
    executor = loaded(weights, threads, pool_tokens(max(SLOTS), max(CONTEXTS)))
    cost = model_cost(weights.spec, weights, Precision.AUTO, KvType.BF16, max(SLOTS))
    read = bandwidth(threads)
    print(
        f"{threads} threads, {read / 1e9:.1f} GB/s, {executor.nbytes / 1e6:.0f} MB of weights; ms per step, and times the bandwidth limit\n"
    )
    print("| context | " + " | ".join(f"{slots} slots" for slots in SLOTS) + " |\n|" + "---|" * (len(SLOTS) + 1))
    measured: dict[tuple[int, int], tuple[float, float]] = {}
    for context in CONTEXTS:
        for i, slots in enumerate(SLOTS):
            kv = slots * sum(layer.kv_read(context) for layer in cost.layers)
            limit = (cost.read_bytes(0, len(cost.layers), slots) + kv) / read
            measured[context, slots] = step_seconds(executor, slots, context, 1000 * (i + 1)), limit
        cells = [
            f"{measured[context, slots][0] * 1e3:.1f} ({measured[context, slots][0] / measured[context, slots][1]:.1f} x)"
            for slots in SLOTS
        ]
        print(f"| {context} | " + " | ".join(cells) + " |")
    if plot:
        draw(measured, plot)


def draw(measured: dict[tuple[int, int], tuple[float, float]], path: str) -> None:
    import matplotlib  # pyright: ignore[reportMissingImports] - no dependency of the project

    matplotlib.use("svg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for slots in SLOTS:
        (line,) = axes.plot(CONTEXTS, [measured[c, slots][0] / slots * 1e3 for c in CONTEXTS], marker="o", label=f"{slots} slots")
        axes.plot(CONTEXTS, [measured[c, slots][1] / slots * 1e3 for c in CONTEXTS], linestyle=":", color=line.get_color())
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="context, tokens",
        ylabel="ms per token",
        title="SmolLM2-135M Q4_1, one node; dotted: memory bandwidth",
    )
    axes.set_xticks(CONTEXTS, [str(c) for c in CONTEXTS])
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plot", default="", help="write the curves as SVG (needs matplotlib)")
    arguments = parser.parse_args()
    main(arguments.threads, arguments.plot)
