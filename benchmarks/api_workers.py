"""What serving the API from processes of its own costs and brings: `python -m benchmarks.api_workers`.

Two clusters of the same nodes, one of which has API workers, take turns. Processor time is told beside tokens per second, because it
does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import psutil

STREAMS, TOKENS = 32, 128


@dataclass
class Round:
    tokens_per_second: float
    cpu: dict[str, float]
    """Milliseconds of processor time per token, by role."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def roles(head: psutil.Process) -> dict[str, list[psutil.Process]]:
    found: dict[str, list[psutil.Process]] = {"head": [head], "workers": [], "nodes": []}
    for process in head.children():
        found["workers" if "shoal.cli.api_worker" in process.cmdline() else "nodes"].append(process)
    return found


def spent(processes: list[psutil.Process]) -> float:
    return sum(p.cpu_times().user + p.cpu_times().system for p in processes)


async def request(port: int, method: str, path: str, body: bytes = b"", headers: str = "") -> AsyncIterator[bytes]:
    """What comes back, as it comes; costs the client little."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%sContent-Length: %d\r\n\r\n"
        % (method.encode(), path.encode(), headers.encode(), len(body))
    )
    writer.write(body)
    while part := await reader.read(1 << 16):
        yield part
    writer.close()


async def stream(port: int, number: int, tokens: int, headers: str = "") -> None:
    """headers: lines."""
    prompt = [(number * 7919 + i * 104729 + 23) % 40000 for i in range(32)]
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, "ignore_eos": True}
    answer = b"".join([part async for part in request(port, "POST", "/v1/completions", json.dumps(body).encode(), headers)])
    assert b"data: [DONE]" in answer, answer[-300:]


async def measure(port: int, head: psutil.Process, number: int, streams: int = STREAMS, tokens: int = TOKENS) -> Round:
    who = roles(head)
    before, began = {role: spent(p) for role, p in who.items()}, perf_counter()
    await asyncio.gather(*(stream(port, number * streams + i, tokens) for i in range(streams)))
    seconds, count = perf_counter() - began, streams * tokens
    return Round(count / seconds, {role: (spent(p) - before[role]) / count * 1e3 for role, p in who.items()})


@contextlib.asynccontextmanager
async def up(*more: str, nodes: int = 2) -> AsyncIterator[tuple[int, psutil.Process]]:
    port = free_port()
    flags = ("--nodes", str(nodes), "--threads", "1", "--port", str(port), "--control-port", "0", "--slots", str(STREAMS), *more)
    command = (sys.executable, "-m", "shoal", "up", *flags)
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.suppress(OSError):
                if b" 200 " in b"".join([part async for part in request(port, "GET", "/health/ready")])[:20]:
                    break
            await asyncio.sleep(0.2)
        await asyncio.gather(*(stream(port, 10_000 + i, 8) for i in range(STREAMS)))
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        await process.wait()


async def main(rounds: int, counts: list[int]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        clusters = {count: await stack.enter_async_context(up("--api-workers", str(count))) for count in counts}
        found: dict[int, list[Round]] = {count: [] for count in counts}
        for number in range(rounds):
            for count, cluster in clusters.items():
                found[count].append(await measure(*cluster, number))
    print(f"{STREAMS} streams of {TOKENS} tokens, medians of {rounds} rounds\n")
    print("| API workers | tokens/s | head, ms of processor per token | workers | nodes |\n|---|---|---|---|---|")
    for count, ran in found.items():
        cpu = {role: median(r.cpu[role] for r in ran) for role in ran[0].cpu}
        print(
            f"| {count} | {median(r.tokens_per_second for r in ran):.0f} | {cpu['head']:.2f} | {cpu['workers']:.2f} | {cpu['nodes']:.2f} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    chosen = parser.parse_args()
    asyncio.run(main(chosen.rounds, chosen.workers))
