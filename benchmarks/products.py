"""Products with weights of each format as `--precision auto` runs them, and as 8 bits, calls in turns: of one row with the weights in memory, and
of more rows with the weights in a cache.

python -m benchmarks.products [--threads 2] [--formats q4_k,q5_k,q6_k] [--seconds 60]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.report import processor
from shoal.config import Precision
from shoal.executor.fast_calls import fast_seconds
from shoal.executor.precision import executed
from shoal.models.matrix import FLOATS, FORMATS, stored_bytes
from shoal.native import kernels

if TYPE_CHECKING:
    from shoal.native._kernels import Head

_K, _FAR, _NEAR = 1536, 8960, 512
"""Inputs, and outputs of a matrix in memory and of one in a cache."""
_APART = 12
"""Matrices that together lie in no cache."""
_ROWS = (1, 8, 64)


@dataclass(frozen=True)
class Made:
    """A format's matrices in one packing."""

    far: list[Head]
    near: Head
    nbytes: int
    """Of one that is far."""


def made(format: str, target: str, threads: int) -> Made:
    module = kernels()
    assert module is not None, "without the kernels there is nothing to measure"
    norm = module.Norm(np.ones(_K, np.float32), 1e-5)

    def head(n: int) -> Head:
        rows = np.zeros((n, stored_bytes(format, _K)), np.uint8)
        return module.Head(norm, module.Linear(module.pack(format, target, rows, _K, threads=threads)))

    far = [head(_FAR) for _ in range(_APART)]
    return Made(far, head(_NEAR), far[0].nbytes)


def call(heads: list[Head], rows: int, n: int, threads: int) -> Callable[[], None]:
    module = kernels()
    assert module is not None
    stage = module.Stage(_K, threads)
    hidden, picked = np.ones((rows, _K), np.float32), np.arange(rows, dtype=np.int32)
    out = np.empty((rows, n), np.float32)

    def run() -> None:
        for head in heads:
            stage.logits(hidden, head, picked, out)

    return run


def main(threads: int, formats: list[str], seconds: float) -> None:
    print(f"{processor()}, {threads} thread(s); in brackets: as 8 bits\n")
    print(f"| format | bits | one row of {_FAR} x {_K} in memory, ms | {' | '.join(f'{rows} rows in a cache, 10^9/s' for rows in _ROWS)} |")
    print("|---" * (3 + len(_ROWS)) + "|")
    for format in formats:
        packed = {target: made(format, target, threads) for target in (executed(format, _K, Precision.AUTO), "q8")}
        calls = {(target, 0): call(one.far, 1, _FAR, threads) for target, one in packed.items()}
        for target, one in packed.items():
            calls |= {(target, rows): call([one.near] * max(1, 16 // rows), rows, _NEAR, 1) for rows in _ROWS}
        times = fast_seconds(calls, seconds / len(formats))
        cells: list[str] = []
        for rows in (0, *_ROWS):
            each = [
                times[target, 0] / _APART * 1e3 if rows == 0 else max(1, 16 // rows) * rows * _NEAR * _K / times[target, rows] / 1e9
                for target in packed
            ]
            cells.append(" ".join(f"{value:.3g}" if at == 0 else f"({value:.3g})" for at, value in enumerate(each)))
        bits = [8 * one.nbytes / _FAR / _K for one in packed.values()]
        print(
            f"| {format} | {' '.join(f'{b:.2f}' if at == 0 else f'({b:.2f})' for at, b in enumerate(bits))} | {' | '.join(cells)} |",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--formats", default=",".join(format for format in FORMATS if format not in FLOATS))
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    main(arguments.threads, arguments.formats.split(","), arguments.seconds)
