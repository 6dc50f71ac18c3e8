"""How long the first calls of the kernels take after a pause, beside those before it.

python -m benchmarks.after_pause [--threads 2] [--pauses 20]

The system often wakes the threads of a team on one processor, and parts them only some 25 ms later; a member that has slept leaves a
processor on which another one runs (native/team.cpp). A call takes about a millisecond.
"""

from __future__ import annotations

import argparse
from statistics import median
from time import perf_counter, sleep

from benchmarks.report import processor
from shoal.executor.kernel_speed import computing

_PAUSE, _CALLS, _WARM = 0.5, 14, 200
_FULL = 1.25
"""A call is at full speed if it takes no longer than so many times the usual."""


def main(threads: int, pauses: int) -> None:
    run = computing(threads)

    def seconds() -> float:
        began = perf_counter()
        run()
        return perf_counter() - began

    usual = median(seconds() for _ in range(_WARM))
    slow, lost = list[int](), list[float]()
    for _ in range(pauses):
        sleep(_PAUSE)
        calls = [seconds() for _ in range(_CALLS)]
        slow.append(next((i for i, call in enumerate(calls) if call <= _FULL * usual), _CALLS))
        lost.append(sum(calls) - _CALLS * usual)
    print(
        f"{threads} threads of {processor()}: {usual * 1e3:.2f} ms a call; after {pauses} pauses of {_PAUSE} s {median(slow):g} calls in the "
        f"median, at most {max(slow)}, were slow; {median(lost) * 1e3:.1f} ms lost in the median, {max(lost) * 1e3:.1f} at most"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pauses", type=int, default=20)
    arguments = parser.parse_args()
    main(arguments.threads, arguments.pauses)
