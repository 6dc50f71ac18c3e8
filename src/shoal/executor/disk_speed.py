"""How fast weights come from a disk: the reads of a model that is larger than memory, around the page cache, into the same kind of memory."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from threading import Event, Thread
from time import perf_counter

import numpy as np
import xxhash

from shoal.errors import ConfigError
from shoal.sizes import human_bytes
from shoal.weights.direct_file import DirectFile
from shoal.weights.reader import Reader
from shoal.weights.slot_memory import SlotMemory

READ = 2560 << 10
"""Bytes of a read: about an expert of a large model."""
_DEPTH = 8
_TURNS = 5
"""Kinds of reads take turns, and of each the median counts: a disk that others use, too, is seldom as fast as it can be."""
_SAMPLE = 16 << 20
"""Bytes of a file from which a sample of the speed is taken, at least."""
_FILE, _SPARE = 320 << 20, 256 << 20
_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")


@dataclass(frozen=True)
class DiskSpeed:
    bytes_per_second: float
    """Of large reads, eight at a time, each checked when it has come, while the processor computes."""
    seconds: float
    """Until the first byte of a read comes, which eight at a time wait for together."""
    small: float
    """Bytes per second of reads of a tenth of the size, eight at a time."""
    alone: float
    """Bytes per second of large reads, one at a time."""
    checked: float
    """Bytes per second at which one thread checks what came."""
    direct: bool
    """Whether the file system takes reads around the page cache."""


def disk_speed(folder: Path, seconds: float = 3.0, computing: Callable[[], object] | None = None) -> DiskSpeed:
    """Of the disk of a folder, which is made if need be. Writes a file there, and deletes it again.

    computing: is called again and again, by a thread of its own, while large reads are timed: what waits for a processor is not read.

    Raises ConfigError if the folder lies in memory, or if there is no room; OSError.
    """
    if (kind := file_system(folder)) in _IN_MEMORY:
        raise ConfigError(
            f"{folder} is in memory ({kind}), so there is no disk to measure; name a folder on a disk with SHOAL_PACKED_CACHE"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < _FILE + _SPARE:
        raise ConfigError(f"{folder} has {human_bytes(free)} free; measuring its disk takes {human_bytes(_FILE + _SPARE)}")
    with _written(folder) as path, DirectFile(path) as file:
        kinds = ((READ, _DEPTH, computing), (READ, 1, None), (READ // 10, _DEPTH, None))
        each = seconds / (_TURNS * len(kinds))
        turns = [[_rate_beside(computing, file, size, depth, each) for size, depth, computing in kinds] for _ in range(_TURNS)]
        large, alone, small = (median(rates) for rates in zip(*turns, strict=True))
        checked = max(_checked(file) for _ in range(_TURNS))
        return DiskSpeed(large, max(READ / alone - READ / large, 0.0), small, alone, checked, file.direct)


def sampled_disk(folder: Path, seconds: float = 0.2) -> float | None:
    """Bytes per second of large reads, eight at a time, of the largest file that was packed there; None if there is none that is large
    enough. Raises OSError, WeightsUnreadable."""
    sizes = {path: path.stat().st_size for path in folder.glob("*/*.packed")}
    largest = max(sizes, key=lambda path: sizes[path], default=None)
    if largest is None or sizes[largest] < _SAMPLE:
        return None
    with DirectFile(largest) as file:
        return _rate(file, READ, _DEPTH, seconds)


def file_system(folder: Path) -> str:
    """The kind of the file system that a folder is on; '' where the system does not tell."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return ""
    place = folder.resolve()
    over = [(len(Path(mount).parts), i, kind) for i, (_, mount, kind, *_) in enumerate(mounts) if place.is_relative_to(_unescaped(mount))]
    return max(over)[2] if over else ""


def _unescaped(mount: str) -> str:
    return mount.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")


@contextmanager
def _written(folder: Path) -> Generator[Path]:
    """A file without zeros, which some disks do not store, and without repetition that they might find."""
    handle, name = tempfile.mkstemp(prefix="measure-", suffix=".partial", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            rng = np.random.Generator(np.random.SFC64())
            for _ in range(_FILE >> 24):
                file.write(rng.bytes(1 << 24))
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield Path(name)
    finally:
        os.unlink(name)


def _rate_beside(computing: Callable[[], object] | None, file: DirectFile, size: int, depth: int, seconds: float) -> float:
    if computing is None:
        return _rate(file, size, depth, seconds)
    over = Event()

    def compute() -> None:
        while not over.is_set():
            computing()

    thread = Thread(target=compute, name="computing beside reads")
    thread.start()
    try:
        return _rate(file, size, depth, seconds)
    finally:
        over.set()
        thread.join()


def _rate(file: DirectFile, size: int, depth: int, seconds: float) -> float:
    """Bytes per second of reads of whole blocks at random places, none twice before all others, so many under way."""
    with SlotMemory(depth, size) as memory, Reader[int](depth) as reader:
        places = list(range(file.nbytes // memory.slot_bytes))
        random.shuffle(places)
        at = 0

        def order(slot: int) -> None:
            nonlocal at
            reader.submit(file, places[at % len(places)] * memory.slot_bytes, memory.view(slot), slot)
            at += 1

        for slot in range(depth):
            order(slot)
        done, began = 0, perf_counter()
        while perf_counter() - began < seconds:
            for slot, error in reader.wait():
                if error is not None:
                    raise error
                xxhash.xxh3_64_intdigest(memory.view(slot))
                done += 1
                order(slot)
        return done * memory.slot_bytes / (perf_counter() - began)


def _checked(file: DirectFile) -> float:
    """Of reads that just came, each once: they are not in the processor's caches."""
    count = 16
    with SlotMemory(count, READ) as memory:
        for slot in range(count):
            file.read_into(slot * memory.slot_bytes, memory.view(slot))
        began = perf_counter()
        for slot in range(count):
            xxhash.xxh3_64_intdigest(memory.view(slot))
        return count * memory.slot_bytes / (perf_counter() - began)
