"""What the disk gives to the reads of a model that streams its weights: sizes of reads, and how many are under way at once.

    python -m benchmarks.disk [--directory /mnt/models] [--gib 4] [--seconds 2] [--rounds 3] [--beside PROGRAM]

PROGRAM is run as `PROGRAM FILE KIB DEPTH SECONDS` and prints a figure before "MB/s": the same reads from another program.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

from benchmarks.report import processor
from shoal.weights.direct_file import DirectFile
from shoal.weights.reader import Reader
from shoal.weights.slot_memory import SlotMemory, aligned

KIB, DEPTHS = (128, 512, 1024, 2592), (1, 2, 4, 8, 16)


def fill(path: Path, nbytes: int) -> None:
    """Not with zeroes, which some disks do not store."""
    block = random.Random(0).randbytes(1 << 24)
    with path.open("wb") as file:
        for _ in range(nbytes // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def reads(path: Path, size: int, depth: int, seconds: float) -> tuple[float, float]:
    """Random reads, as many waiting as are under way: bytes a second, and the seconds that this process computes per read."""
    rng = random.Random()
    with DirectFile(path) as file, SlotMemory(2 * depth, size) as memory, Reader[int](depth) as reader:
        places = file.nbytes // memory.slot_bytes
        began, computed, done = perf_counter(), process_time(), 0
        for slot in range(memory.slots):
            reader.submit(file, rng.randrange(places) * memory.slot_bytes, memory.view(slot), slot)
        while perf_counter() - began < seconds:
            for slot, error in reader.wait():
                if error is not None:
                    raise error
                done += 1
                reader.submit(file, rng.randrange(places) * memory.slot_bytes, memory.view(slot), slot)
        return done * size / (perf_counter() - began), (process_time() - computed) / done


def beside(program: str, path: Path, size: int, depth: int, seconds: float) -> float:
    command = [program, str(path), str(size >> 10), str(depth), f"{seconds:g}"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"([\d.]+) MB/s", said)
    if found is None:
        raise SystemExit(f"{program} names no MB/s: {said}")
    return float(found[1]) * 1e6


def main(directory: Path, gib: float, seconds: float, rounds: int, program: str | None) -> None:
    path = directory / "weights"
    fill(path, int(gib * (1 << 30)))
    with DirectFile(path) as file:
        print(f"{processor()}; {'direct' if file.direct else 'plain'} random reads of a file of {gib:g} GiB, medians of {rounds}\n")
    print(f"| KiB | reads at once | MB/s | µs of processor per read |{' beside it MB/s |' if program else ''}")
    print(f"|---|---|---|---|{'---|' if program else ''}")
    for size in (aligned(kib << 10) for kib in KIB):
        for depth in DEPTHS:
            ours: list[tuple[float, float]] = []
            theirs: list[float] = []
            for _ in range(rounds):
                ours.append(reads(path, size, depth, seconds))
                if program:
                    theirs.append(beside(program, path, size, depth, seconds))
            speed, cost = (median(figures) for figures in zip(*ours, strict=True))
            peer = f" {median(theirs) / 1e6:.0f} |" if theirs else ""
            print(f"| {size >> 10} | {depth} | {speed / 1e6:.0f} | {cost * 1e6:.0f} |{peer}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, help="on the disk in question; a temporary one otherwise")
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", metavar="PROGRAM")
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="shoal-disk-", dir=arguments.directory))
    try:
        main(home, arguments.gib, arguments.seconds, arguments.rounds, arguments.beside)
    finally:
        shutil.rmtree(home)
