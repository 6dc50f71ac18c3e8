"""How fast memory is read front to back, by threads that do nothing else: what reading weights is compared with."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

_SIZE = 256 << 20
"""Bytes that are read, all threads together: more than most caches hold."""
_TIMES = 8


def streaming_read(threads: int) -> float:
    """Bytes per second of the fastest of some passes; takes some tenths of a second, and 256 MiB of memory."""
    parts = [np.ones(_SIZE // threads // 8, np.int64) for _ in range(threads)]

    def read(part: NDArray[np.int64]) -> None:
        np.add.reduce(part)

    seconds: list[float] = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_TIMES):
            began = perf_counter()
            for done in [pool.submit(read, part) for part in parts]:
                done.result()
            seconds.append(perf_counter() - began)
    return sum(part.nbytes for part in parts) / min(seconds)
