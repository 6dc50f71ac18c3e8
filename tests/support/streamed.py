"""Models whose weights are streamed from packed files, by disks that are slow or fail."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from time import sleep

from shoal.config import Precision
from shoal.executor.packed_layers import PackedFinder, PackedLayers
from shoal.executor.packing import StoredTensors
from shoal.models.weights import Weights
from shoal.placement.division import StageSizes, least
from shoal.weights.direct_file import Source


def packed(weights: Weights, precision: Precision, folder: Path, disk: Disk | None = None) -> PackedLayers:
    return (
        DisturbedLayers(folder, weights, precision, disk) if disk else PackedLayers(folder, weights.spec, StoredTensors(weights, precision))
    )


def finder(folder: Path, precision: Precision, disk: Disk | None = None) -> PackedFinder:
    return lambda weights: packed(weights, precision, folder, disk)


def made(weights: Weights, precision: Precision, folder: Path) -> StageSizes:
    """Makes the files of all layers."""
    files = packed(weights, precision, folder)
    files.make(list(range(len(weights.spec.layers) + 1)))
    return files.sizes(range(len(weights.spec.layers)))


def residencies(sizes: StageSizes) -> dict[str, int]:
    """Bytes for the weights of a stage, by how much of what need not be there they leave room for."""
    low = least(sizes)
    return {"least": low, **{f"{percent} %": low + (sizes.total - low) * percent // 100 for percent in (25, 50, 75, 100)}}


def damage(file: Path) -> None:
    """Flips bits of every unit; size and times stay, as when a disk errs."""
    status = file.stat()
    with file.open("r+b") as opened:
        for at in range(4096, status.st_size - (64 << 10), 4096):
            opened.seek(at + 99)
            byte = opened.read(1)[0]
            opened.seek(at + 99)
            opened.write(bytes([byte ^ 1]))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


Fault = Callable[[int, memoryview], int]
"""What comes of a read of a file, given what was read and its memory."""


class Disk:
    """Reads of packed files, counted from 0, in any order. `faults`: by the number of a read."""

    def __init__(self, delay: float = 0.0, seed: int = 0) -> None:
        """delay: seconds that a read takes more, at most; so they arrive in another order than they began in."""
        self.faults: dict[int, Fault] = {}
        self.broken = False
        """Every read fails."""
        self.reads = 0
        self._delay, self._random, self._counting = delay, random.Random(seed), threading.Lock()

    def read(self, source: Source, offset: int, into: memoryview) -> int:
        with self._counting:
            fault = self.faults.pop(self.reads, None)
            self.reads += 1
            wait = self._random.random() * self._delay
        if wait:
            sleep(wait)
        if self.broken:
            raise OSError(errno.EIO, "Input/output error")
        count = source.read_into(offset, into)
        return fault(count, into) if fault is not None else count


class DisturbedLayers(PackedLayers):
    """Read from a `Disk`."""

    def __init__(self, folder: Path, weights: Weights, precision: Precision, disk: Disk) -> None:
        super().__init__(folder, weights.spec, StoredTensors(weights, precision))
        self._disk = disk

    def source(self, layer: int) -> Source:
        return _Disturbed(super().source(layer), self._disk)


class _Disturbed:
    def __init__(self, source: Source, disk: Disk) -> None:
        self._source, self._disk = source, disk

    @property
    def path(self) -> Path:
        return self._source.path

    def read_into(self, offset: int, into: memoryview) -> int:
        return self._disk.read(self._source, offset, into)


def input_output_error(count: int, into: memoryview) -> int:
    raise OSError(errno.EIO, "Input/output error")


def cut_short(count: int, into: memoryview) -> int:
    """The file ends here."""
    return 0


def one_bit(count: int, into: memoryview) -> int:
    into[count // 2] ^= 16
    return count


def zeros(count: int, into: memoryview) -> int:
    """A block that never reached the disk."""
    into[: min(4096, count)] = bytes(min(4096, count))
    return count


FAULTS: dict[str, Fault] = {"EIO": input_output_error, "cut short": cut_short, "one bit": one_bit, "zeros": zeros}
