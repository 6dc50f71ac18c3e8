"""A model that is larger than memory: shoal beside llama.cpp with mmap (and so without repacking), on the same file, under the same memory limit, rounds interleaved.

python -m benchmarks.streaming [--rounds 3] [--use even local trained] [--shares 75 50 25] [--threads 2]

The file: random weights in Qwen3-MoE's shape, 6 GB, 128 experts, eight of them chosen, used evenly or as unevenly as a real model's; or
Qwen2.5-Coder-1.5B as a Qwen2-MoE of 32 experts that differ, eight of them chosen, its routers random, 3.3 GB.
The limit is a share of the file, for everything: shoal's head and node, or llama.cpp, with the page cache. Tokens are random, as those of
llama-bench are. llama.cpp is measured with a read-ahead of 128 KiB, which is usual, and with this machine's own. Needs root.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks import capped, ours, peers, random_moe
from benchmarks.report import processor
from shoal.models.sources import pull
from shoal.request import SamplingParams
from tests.support import upcycled
from tests.support.control_groups import Group

FILES: dict[str, Callable[[], Path]] = {
    "even": lambda: random_moe.write(random_moe.QWEN3, pull("smollm2-135m")),
    "local": lambda: random_moe.write(random_moe.QWEN3_LOCAL, pull("smollm2-135m")),
    "trained": lambda: upcycled.qwen2_moe(pull("qwen2.5-coder-1.5b"), sets=4, noise=0.05),
}
"""By the use of experts."""
_BESIDE = 64 << 20
"""Bytes of the limit that are not given to the node: the head, and all interpreters, also fit into what a node keeps back for itself."""
_SAMPLED = SamplingParams(temperature=1.0)
_MANY = 32
"""Streams beyond which each has fewer tokens: their keys and values are a part of the limit."""


def _tokens(streams: int) -> int:
    """Of an answer."""
    return 96 if streams <= _MANY else 48


async def measure(file: Path, memory: int, threads: int, streams: list[int]) -> list[float]:
    """Tokens per second of shoal, in this process and its children."""
    most = max(streams)
    settings = {"slots": most, "context": 1024, "kv_tokens": most * (256 if most <= _MANY else 96)}
    if most > _MANY:
        settings |= {"prompt_wait": 0, "step_tokens": 2 * most}  # as `batch` and `infer-moe` do
    node = {"memory": str(memory), "journal": "0", "journal_disk": "0"} if memory else {}
    async with ours.cluster(str(file), 1, threads, node, **settings) as cluster:
        await ours.steady(cluster.head, 1, 64, _SAMPLED)
        return [await ours.steady(cluster.head, count, _tokens(count), _SAMPLED) for count in streams]


def _ours(group: Group, file: Path, memory: int, threads: int, streams: list[int]) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.streaming", "--measure", file, "--memory", str(memory), "--threads", str(threads)]
    return json.loads(capped.output(group, [*command, "--streams", *map(str, streams)]).splitlines()[-1])


def _theirs(group: Group, file: Path, threads: int, streams: int) -> float:
    command = [peers.llama_cpp() / "llama-batched-bench", "-m", file, "-t", str(threads), "-tb", str(threads), "-npp", "32"]
    command += ["-c", str(max(4096, streams * 64))]
    rows = capped.output(group, [*command, "-ntg", "32", "-npl", str(streams), "--no-repack", "--output-format", "jsonl"]).splitlines()
    return next(row["speed_tg"] for line in rows if line.startswith("{") for row in [json.loads(line)])


def main(use: str, shares: list[int], streams: list[int], rounds: int, threads: int, warm: list[int | None]) -> None:
    file = FILES[use]()
    size = file.stat().st_size
    print(f"### {use} use of experts, {size / 1e9:.2f} GB, {threads} threads of {processor()}, medians of {rounds}\n")
    asyncio.run(measure(file, size // 2, threads, [1]))  # packs the file once
    print("| limit | streams | shoal | llama.cpp, read-ahead | ratio | shoal's peak | its peak |\n|---|---|---|---|---|---|---|")
    for share in shares:
        limit = size * share // 100
        mine: list[list[float]] = []
        theirs: dict[tuple[int, int], list[float]] = {}
        peaks = [0, 0]
        for _ in range(rounds):
            with capped.limited(limit, [file]) as group:
                mine.append(_ours(group, file, limit - _BESIDE if share < 100 else 0, threads, streams))
                peaks[0] = max(peaks[0], group.peak)
            for kib in warm:
                with capped.read_ahead(file, kib) as ahead:
                    for count in streams:
                        with capped.limited(limit, [file]) as group:
                            theirs.setdefault((ahead, count), []).append(_theirs(group, file, threads, count))
                            peaks[1] = max(peaks[1], group.peak)
        for i, count in enumerate(streams):
            us = median(found[i] for found in mine)
            if not warm:
                print(f"| {share} % | {count} | {us:.1f} | - | - | {peaks[0] / 2**20:.0f} MiB | - |", flush=True)
            for (ahead, of), found in theirs.items():
                if of == count:
                    them = median(found)
                    sizes = " | ".join(f"{peak / 2**20:.0f} MiB" for peak in peaks)
                    print(f"| {share} % | {count} | {us:.1f} | {them:.1f}, {ahead} KiB | {us / them:.2f} | {sizes} |", flush=True)
    print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--use", nargs="+", choices=FILES, default=list(FILES))
    parser.add_argument("--shares", nargs="+", type=int, default=[75, 50, 25])
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one-read-ahead", action="store_true", help="leave out llama.cpp with this machine's own read-ahead")
    parser.add_argument("--alone", action="store_true", help="leave llama.cpp out")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(asyncio.run(measure(arguments.measure, arguments.memory, arguments.threads, arguments.streams))))
    else:
        for use in arguments.use:
            main(
                use,
                arguments.shares,
                arguments.streams,
                arguments.rounds,
                arguments.threads,
                [] if arguments.alone else [128] if arguments.one_read_ahead else [128, None],
            )
