"""What a token costs as the work grows: decode time per step against context (128 to 4096) and slots (1 to 32), one node,
beside the limit that memory bandwidth sets: the weights and the keys and values that a step has to read.

    python -m benchmarks.scaling [--threads 2] [--kv-types bf16 q8] [--contexts 512 4096] [--slots 1 32] [--plot docs/scaling.svg]

A table for each type of keys and values; a cell of all types is measured in turns, and those after the first say how many times faster
they are than it. --processor-time: of one thread instead of the clock's, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter, thread_time

from shoal.config import KvType, Precision, RuntimeName
from shoal.executor.cost import model_cost
from shoal.executor.memory_read import streaming_read
from shoal.executor.runtimes import factory
from shoal.executor.shard import Shard
from shoal.executor.stage import StageExecutor
from shoal.models.sources import pull
from shoal.models.weights import Weights, open_weights
from shoal.native import BLOCK_TOKENS
from shoal.request import SamplingParams
from shoal.scheduler.plan import Chunk, Opened, StepPlan

CONTEXTS, SLOTS = (128, 256, 512, 1024, 2048, 4096), (1, 2, 4, 8, 16, 32)


def loaded(weights: Weights, threads: int, tokens: int, kv_type: KvType = KvType.BF16) -> StageExecutor:
    """All layers in one stage, with room for the keys and values of so many tokens."""
    layers = range(len(weights.spec.layers))
    shard = Shard(factory(RuntimeName.NATIVE, Precision.AUTO, kv_type, threads))
    shard.load(layers, weights)
    return shard.enter(layers, range(0), tokens // BLOCK_TOKENS)


def pool_tokens(slots: int, context: int) -> int:
    """Tokens of a pool that `step_seconds` needs."""
    return slots * _blocks(context) * BLOCK_TOKENS


def _blocks(context: int) -> int:
    return -(-(context + 16) // BLOCK_TOKENS)


def step_seconds(executor: StageExecutor, slots: int, context: int, first: int, clock: Callable[[], float] = perf_counter) -> float:
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
        began = clock()
        executor.run(plan, None)
        seconds.append(clock() - began)
    executor.run(StepPlan(99, [], [first + i for i in range(slots)], [], [], []), None)
    return median(seconds[2:])


Measured = dict[tuple[int, int], tuple[float, float]]
"""Seconds of a step by context and slots, and the least that reading takes."""


def main(threads: int, clock: Callable[[], float], plot: str, types: list[KvType], contexts: list[int], every: list[int]) -> None:
    weights = open_weights(pull("smollm2-135m"))
    executors = {kv_type: loaded(weights, threads, pool_tokens(max(every), max(contexts)), kv_type) for kv_type in types}
    costs = {kv_type: model_cost(weights.spec, weights, Precision.AUTO, kv_type, max(every)) for kv_type in types}
    read, nbytes = streaming_read(threads), executors[types[0]].nbytes
    print(f"{threads} threads, {read / 1e9:.1f} GB/s, {nbytes / 1e6:.0f} MB of weights; ms per step, and times the bandwidth limit")
    measured: dict[KvType, Measured] = {kv_type: {} for kv_type in types}
    for context in contexts:
        for i, slots in enumerate(every):
            for kv_type, cost in costs.items():
                kv = slots * sum(layer.kv_read(context) for layer in cost.layers)
                limit = (cost.read_bytes(0, len(cost.layers), slots) + kv) / read
                measured[kv_type][context, slots] = step_seconds(executors[kv_type], slots, context, 1000 * (i + 1), clock), limit
    for kv_type in types:
        print(f"\n{kv_type}:\n\n| context | " + " | ".join(f"{slots} slots" for slots in every) + " |\n|" + "---|" * (len(every) + 1))
        for context in contexts:
            cells: list[str] = []
            for slots in every:
                seconds, limit = measured[kv_type][context, slots]
                faster = f", {measured[types[0]][context, slots][0] / seconds:.2f} x faster" if kv_type is not types[0] else ""
                cells.append(f"{seconds * 1e3:.1f} ({seconds / limit:.1f} x{faster})")
            print(f"| {context} | " + " | ".join(cells) + " |")
    if plot:
        draw(measured[types[0]], contexts, every, plot)


def draw(measured: Measured, contexts: list[int], every: list[int], path: str) -> None:
    import matplotlib  # pyright: ignore[reportMissingImports] - no dependency of the project

    matplotlib.use("svg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for slots in every:
        (line,) = axes.plot(contexts, [measured[c, slots][0] / slots * 1e3 for c in contexts], marker="o", label=f"{slots} slots")
        axes.plot(contexts, [measured[c, slots][1] / slots * 1e3 for c in contexts], linestyle=":", color=line.get_color())
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="context, tokens",
        ylabel="ms per token",
        title="SmolLM2-135M Q4_1, one node; dotted: memory bandwidth",
    )
    axes.set_xticks(contexts, [str(c) for c in contexts])
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--kv-types", type=KvType, nargs="+", default=[KvType.BF16])
    parser.add_argument("--contexts", type=int, nargs="+", default=list(CONTEXTS))
    parser.add_argument("--slots", type=int, nargs="+", default=list(SLOTS))
    parser.add_argument("--plot", default="", help="write the curves as SVG (needs matplotlib)")
    arguments = parser.parse_args()
    main(
        1 if arguments.processor_time else arguments.threads,
        thread_time if arguments.processor_time else perf_counter,
        arguments.plot,
        arguments.kv_types,
        arguments.contexts,
        arguments.slots,
    )
