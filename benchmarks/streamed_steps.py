"""Steps of many sequences over streamed weights: tokens a second, and what disk and processor do meanwhile.

    python -m benchmarks.streamed_steps MODEL.gguf [--memory 0.5] [--rows 64,256] [--rounds 3] [--disk MB/s] [--chart FILE.svg]

Rounds alternate between experts that stay until their layer is done, and experts that give up their places when they have run, so that the
next layer's are read meanwhile; the first step of each is left out. A step is all layers and the head for one token of each sequence, without sampling.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import NamedTuple

import numpy as np

from benchmarks.report import processor
from shoal.config import KvType, Precision
from shoal.executor import expert_slots
from shoal.executor.base import StageBatch
from shoal.executor.native_runtime import NativeRuntime
from shoal.executor.packed_layers import PackedLayers
from shoal.executor.streamed_store import StreamedStore
from shoal.folders import cache_dir
from shoal.models.weights import open_weights
from shoal.native import BLOCK_TOKENS
from shoal.placement import chart
from shoal.placement.timeline import last
from shoal.weights.direct_file import DirectFile

WAYS = {"stay": 2.0, "give up": expert_slots.GUESS_RECALL}
"""By way: how sure it has to be that experts are needed for them to be read ahead; more than 1: never."""
STEPS = 4


class Took(NamedTuple):
    seconds: float
    computing: float
    reading: float
    reads: int
    nbytes: int


def limit(rate: float) -> None:
    """Makes all reads together no faster than that, in bytes a second."""
    read, queue, free = DirectFile.read_into, threading.Lock(), 0.0

    def read_into(self: DirectFile, offset: int, into: memoryview) -> int:
        nonlocal free
        count = read(self, offset, into)
        with queue:
            free = max(free, perf_counter()) + count / rate
            until = free
        sleep(max(until - perf_counter(), 0.0))
        return count

    DirectFile.read_into = read_into


def steps(runtime: NativeRuntime, store: StreamedStore, rows: int, first: int) -> Iterator[Took]:
    spec, rng = runtime._spec, np.random.default_rng(rows)
    each = np.arange(rows, dtype=np.int32)
    width = (first + STEPS) // BLOCK_TOKENS + 1
    tables = np.arange(rows * width, dtype=np.int32).reshape(rows, width)
    for step in range(first, first + STEPS):
        batch = StageBatch(np.arange(rows + 1, dtype=np.int32), np.full(rows, step, np.int32), tables, each, each, ())
        angles = [(np.ones((rows, k // 2), np.float32), np.zeros((rows, k // 2), np.float32)) for _, k in spec.rotations]
        hidden = rng.standard_normal((rows, spec.hidden)).astype(np.float32)
        before, began = store.activity.sums, perf_counter()
        runtime.logits(runtime.forward(hidden, batch, angles, store.layers, store), each, store)
        seconds, after = perf_counter() - began, store.activity.sums
        yield Took(
            seconds,
            after.computing - before.computing,
            after.reading - before.reading,
            after.reads - before.reads,
            after.nbytes - before.nbytes,
        )


def main(model: Path, share: float, rows: list[int], rounds: int, image: Path | None) -> None:
    weights = open_weights(model)
    layers, precision = range(len(weights.spec.layers)), Precision.AUTO
    packed = PackedLayers.of(weights, cache_dir() / "packed", precision, 2, print)
    packed.make([*layers, layers.stop])
    store = StreamedStore(packed, layers, int(packed.sizes(layers).total * share))
    store.fill()
    runtime = NativeRuntime(weights.spec, kv_type=KvType.BF16, precision=precision, threads=2)
    print(f"{processor()}; {store.division.slots} places for {sum(store.sizes.experts.values())} experts; medians\n")
    for many in rows:
        runtime.open(many * ((2 * rounds * STEPS) // BLOCK_TOKENS + 2))
        took: dict[str, list[Took]] = {way: [] for way in WAYS}
        for turn in range(2 * rounds):
            way = list(WAYS)[turn % 2]
            expert_slots.GUESS_RECALL = WAYS[way]
            took[way] += list(steps(runtime, store, many, turn * STEPS))[1:]
        print(
            "| sequences | experts | tokens/s | processor busy | disk busy | reads a step | MB/s while it reads |\n|---|---|---|---|---|---|---|"
        )
        for way, found in took.items():
            tokens, busy = median(many / t.seconds for t in found), median(t.computing / t.seconds for t in found)
            disk, reads = median(t.reading / t.seconds for t in found), median(t.reads for t in found)
            speed = median(t.nbytes / t.reading for t in found if t.reading) / 1e6
            print(f"| {many} | {way} | {tokens:.0f} | {busy:.0%} | {disk:.0%} | {reads:.0f} | {speed:.0f} |", flush=True)
        shown = last(store.activity.spans, took["give up"][-1].seconds)
        print(f"\nthe last step:\n{chart.text(shown)}")
        if image is not None:
            image.write_text(chart.svg(shown))
    store.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--memory", type=float, default=0.5, help="for the weights, as a part of them")
    parser.add_argument("--rows", default="64,256")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--disk", type=float, default=0.0, help="MB/s that reads are held to; 0: as fast as they are")
    parser.add_argument("--chart", type=Path, metavar="FILE.svg", help="of the last step")
    given = parser.parse_args()
    if given.disk:
        limit(given.disk * 1e6)
    main(given.model, given.memory, [int(many) for many in given.rows.split(",")], given.rounds, given.chart)
