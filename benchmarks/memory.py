"""A node's peak memory against its bound, its time to be ready with cached weights, and the size of the base install.

python -m benchmarks.memory [--model smollm2-135m] [--nodes 1]
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks import ours
from shoal.native import BLOCK_TOKENS


def _peak(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


async def node(model: str, nodes: int, precision: str) -> None:
    async with ours.cluster(model, nodes, max(1, 2 // nodes), precision=precision) as cluster:
        await asyncio.gather(*(ours.generate(cluster.head, ours.fresh_prompt(cluster.head, 600), 32) for _ in range(8)))
        placement = cluster.head.placement
        assert placement is not None
        by_name = {stage.node: stage for stage in placement.stages}
        blocks = 8 * -(-632 // BLOCK_TOKENS)  # touched by the requests above
        for child in cluster.children:
            stage = by_name[child.name]
            layers = cluster.head.engine.served.cost.layers[stage.first : stage.end]
            pool = blocks * BLOCK_TOKENS * sum(layer.kv_bytes for layer in layers)
            bound = stage.weight_bytes * 1.3 + pool + 200e6
            peak = _peak(child.process.pid)
            print(
                f"| {precision} | {child.name}: {stage.layers} layers | {stage.weight_bytes / 1e6:.0f} | {pool / 1e6:.0f} | {peak / 1e6:.0f} | {bound / 1e6:.0f} | {'ok' if peak <= bound else 'OVER'} |"
            )


async def ready(model: str) -> float:
    """Seconds from the start of a node's process until it serves, weights cached."""
    began = perf_counter()
    async with ours.cluster(model, 1, 2):
        return perf_counter() - began


def install_size() -> int:
    """Bytes of site-packages with the base install in a new environment."""
    with tempfile.TemporaryDirectory() as home:
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        pip = [f"{home}/bin/python", "-m", "pip", "install", "--quiet", str(Path(__file__).parent.parent)]
        subprocess.run(pip, check=True, stderr=subprocess.DEVNULL)
        return sum(f.stat().st_size for f in Path(home).rglob("*") if f.is_file() and not f.is_symlink())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--install", action="store_true", help="measure the base install as well")
    arguments = parser.parse_args()
    print("| precision | node | weights MB | KV MB | peak MB | bound MB | |\n|---|---|---|---|---|---|---|")
    for precision in ("auto", "q8", "fp32"):
        asyncio.run(node(arguments.model, arguments.nodes, precision))
    print(f"\nready after {median([asyncio.run(ready(arguments.model)) for _ in range(3)]):.2f} s (median of 3; goal 3 s)")
    if arguments.install:
        print(f"base install {install_size() / 1e6:.0f} MB (goal 400 MB)")
