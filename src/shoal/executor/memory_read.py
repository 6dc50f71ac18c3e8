"""How fast memory is read front to back, by threads that do nothing else: what reading weights is compared with."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from shoal.allowance import memory

_SIZE = 512 << 20
"""Bytes that are read, all threads together: more than a processor's caches hold. Less where there is not four times as much free memory."""
_TIMES = 8


def streaming_read(threads: int) -> float:
    """Bytes per second of the fastest of some passes; takes some tenths of a second, and 512 MiB of memory at most."""
    size = min(_SIZE, memory().available // 4)
    parts = [np.ones(size // threads // 8, np.int64) for _ in range(threads)]

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
