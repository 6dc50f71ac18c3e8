"""Whether attention is to run where keys and values are, or they are to be moved: Figure 9 of MoE-Lightning (arXiv 2411.11217) for this
machine.

python -m benchmarks.attention [--threads 2] [--rows 32 64 128 256] [--contexts 128 512 2048]

For one layer with 16 query heads and 4 heads of keys of 128 values in bf16, and 128 experts of 2048 × 768 in 4 bits, eight chosen: what
attention of one row of each sequence takes here, what it takes to read the same keys and values from this machine's disk, and what the
layer's experts take for the same rows. Attention here is worth it while it is faster than moving; it costs nothing while it is faster than
reading the layer's experts, which goes on meanwhile.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter

from benchmarks.report import processor
from shoal.executor.disk_speed import disk_speed
from shoal.executor.kernel_speed import TOKEN, KernelCalls
from shoal.folders import cache_dir
from shoal.placement.cost import ExpertsCost, Matrices

_MOST = 3 << 30
"""Bytes of keys and values that are laid out, at most; larger steps are timed in parts."""
_EXPERTS = ExpertsCost(128, 8, Matrices(round(3 * 2048 * 768 * 4.5 / 8), 3 * 2048 * 768))


def seconds(calls: list[Callable[[], None]], rounds: int = 5) -> float:
    """The median of all calls, one after the other."""
    times: list[float] = []
    for _ in range(rounds):
        began = perf_counter()
        for call in calls:
            call()
        times.append(perf_counter() - began)
    return median(times)


def main(threads: int, every_rows: list[int], contexts: list[int]) -> None:
    made, disk = KernelCalls(threads, ""), disk_speed(cache_dir() / "packed")
    rate = disk.bytes_per_second
    print(f"{threads} threads of {processor()}; disk {rate / 1e9:.2f} GB/s; medians of 5, one layer\n")
    print("| rows | context | attention here, ms | GB/s | moving keys and values, ms | moving / attention | reading the experts, ms |")
    print("|---|---|---|---|---|---|---|")
    for rows in every_rows:
        for context in contexts:
            nbytes = rows * context * TOKEN
            together = max(min(rows, _MOST // (context * TOKEN)), 1)
            took = seconds(made.attend_steps(together, together, context)) * rows / together
            moving = nbytes / rate
            experts = _EXPERTS.touched(rows) * _EXPERTS.each.size / rate
            print(
                f"| {rows} | {context} | {took * 1e3:.2f} | {nbytes / took / 1e9:.1f} | {moving * 1e3:.1f} | {moving / took:.1f} "
                f"| {experts * 1e3:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 512, 2048])
    arguments = parser.parse_args()
    main(arguments.threads, arguments.rows, arguments.contexts)
