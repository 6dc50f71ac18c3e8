"""How fast each instruction set of this machine multiplies, with the matrices in a cache: 10^9 operations per second by rows.

python -m benchmarks.kernels [--threads 1] [--isa avx2] [--seconds 5]
"""

from __future__ import annotations

import argparse

from benchmarks.report import processor
from shoal.config import INSTRUCTION_SETS
from shoal.executor.kernel_speed import kernel_speed
from shoal.native import instruction_sets

ROWS = (1, 4, 8, 32, 128)


def main(threads: int, wanted: list[str], seconds: float) -> None:
    print(f"{processor()}, {threads} thread(s); 10^9 operations per second, fastest of many\n")
    print("| set | weights | " + " | ".join(f"{rows} rows" for rows in ROWS) + " |\n|" + "---|" * (len(ROWS) + 2))
    for isa in wanted or instruction_sets():
        for kind, points in kernel_speed(threads, isa, seconds).arithmetic.items():
            speeds = dict(points)
            if kind != "attention":
                print(f"| {isa} | {kind} | " + " | ".join(f"{speeds[rows] / 1e9:.0f}" for rows in ROWS) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--isa", choices=INSTRUCTION_SETS, action="append", default=[], help="default: all that this machine has")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each set")
    arguments = parser.parse_args()
    main(arguments.threads, arguments.isa, arguments.seconds)
