"""How fast this machine is now, as a share of what its profile says.

A virtual machine shares its cores and its disk with neighbours that it does not see: the same call takes a quarter longer for some
seconds, and the same read twice as long, while nothing else runs here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter

from shoal.executor.disk_speed import READ
from shoal.executor.kernel_speed import COMPUTED, COMPUTING_ROWS, computing
from shoal.placement.hardware import Hardware
from shoal.weights.direct_file import DirectFile
from shoal.weights.reader import Reader
from shoal.weights.slot_memory import SlotMemory

_CALLS, _READS = 12, 5


class Pace:
    """file: what is read, on the disk of the profile; None: nothing is. threads: as the profile was measured with."""

    def __init__(self, hardware: Hardware, threads: int, file: Path | None) -> None:
        self._run = computing(threads)
        self._call_seconds = COMPUTED / hardware.devices[0].curve("q4").at(COMPUTING_ROWS)
        self._file = None if file is None or not hardware.links else DirectFile(file)
        self._memory, self._reader, self._rng = SlotMemory(1, READ), Reader[int](1), Random(0)
        if hardware.links:
            self._read_seconds = READ / hardware.links[0].bytes_per_second + hardware.links[0].seconds

    def both(self) -> tuple[float, float]:
        """Processor, disk."""
        disk = self.disk()
        return self.processor(), disk

    def processor(self) -> float:
        return self._call_seconds / min(_seconds(self._run) for _ in range(_CALLS))

    def disk(self) -> float:
        """1 without a disk."""
        return self._read_seconds / median(_seconds(self._read) for _ in range(_READS)) if self._file is not None else 1.0

    def _read(self) -> None:
        assert self._file is not None
        self._reader.submit(self._file, self._rng.randrange(self._file.nbytes - READ) // 4096 * 4096, self._memory.view(0), 0)
        for _, error in self._reader.wait():
            if error is not None:
                raise error

    def close(self) -> None:
        self._reader.close()
        self._memory.close()
        if self._file is not None:
            self._file.close()


def _seconds(run: Callable[[], None]) -> float:
    began = perf_counter()
    run()
    return perf_counter() - began
