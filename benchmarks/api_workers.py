"""What serving the API from processes of its own costs and brings: `python -m benchmarks.api_workers`; `--gateways 0 1 2`: from
gateways, over TLS with certificates, all on this machine.

Clusters of the same nodes, which differ in that alone, take turns. Processor time is told beside tokens per second, because it
does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import psutil

from shoal.launch.keys import authority, kept_path
from shoal.security.certificates import Role

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


async def measure(
    port: int | Sequence[int],
    head: psutil.Process,
    number: int,
    streams: int = STREAMS,
    tokens: int = TOKENS,
    gateways: Sequence[psutil.Process] = (),
) -> Round:
    """port: of the API, or of several that take turns."""
    ports = [port] if isinstance(port, int) else port
    who = {**roles(head), "gateways": [*gateways]}
    before, began = {role: spent(p) for role, p in who.items()}, perf_counter()
    await asyncio.gather(*(stream(ports[i % len(ports)], number * streams + i, tokens) for i in range(streams)))
    seconds, count = perf_counter() - began, streams * tokens
    return Round(count / seconds, {role: (spent(p) - before[role]) / count * 1e3 for role, p in who.items()})


@contextlib.asynccontextmanager
async def up(*more: str, nodes: int = 2) -> AsyncIterator[tuple[int, psutil.Process]]:
    port = free_port()
    flags = ("--nodes", str(nodes), "--threads", "1", "--port", str(port), "--control-port", "0", "--slots", str(STREAMS), *more)
    command = (sys.executable, "-m", "shoal", "up", *flags)
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.DEVNULL)
    try:
        await until_ready(port)
        await asyncio.gather(*(stream(port, 10_000 + i, 8) for i in range(STREAMS)))
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        await process.wait()


async def until_ready(port: int) -> None:
    while True:
        with contextlib.suppress(OSError):
            if b" 200 " in b"".join([part async for part in request(port, "GET", "/health/ready")])[:20]:
                return
        await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def with_gateways(count: int) -> AsyncIterator[tuple[Sequence[int], psutil.Process, list[psutil.Process]]]:
    """A cluster that serves its API from so many gateways; 0: by itself."""
    if not count:
        async with up("--secure") as (port, head):
            yield [port], head, []
        return
    control, made, ports = free_port(), list[asyncio.subprocess.Process](), [free_port() for _ in range(count)]
    async with up("--secure", "--gateway-port", str(free_port()), "--control-port", str(control)) as (_, head):
        address = f"127.0.0.1:{control}"
        authority().credentials(Role.GATEWAY, "benchmark").save(kept_path(address, Role.GATEWAY))
        try:
            for port in ports:
                command = (sys.executable, "-m", "shoal", "gateway", address, "--port", str(port))
                made.append(await asyncio.create_subprocess_exec(*command, stderr=subprocess.DEVNULL))
                await until_ready(port)
            yield ports, head, [psutil.Process(process.pid) for process in made]
        finally:
            for process in made:
                process.terminate()
                await process.wait()


async def main(rounds: int, workers: list[int], gateways: list[int]) -> None:
    found: dict[int, list[Round]] = {count: [] for count in gateways or workers}
    async with contextlib.AsyncExitStack() as stack:
        if gateways:
            many = {count: await stack.enter_async_context(with_gateways(count)) for count in gateways}
            for number in range(rounds):
                for count, (ports, head, beside) in many.items():
                    found[count].append(await measure(ports, head, number, gateways=beside))
        else:
            clusters = {count: await stack.enter_async_context(up("--api-workers", str(count))) for count in workers}
            for number in range(rounds):
                for count, cluster in clusters.items():
                    found[count].append(await measure(*cluster, number))
    what = "gateways" if gateways else "workers"
    print(f"{STREAMS} streams of {TOKENS} tokens, medians of {rounds} rounds\n")
    print(f"| {what} | tokens/s | head, ms of processor per token | {what} | nodes |\n|---|---|---|---|---|")
    for count, ran in found.items():
        cpu = {role: median(r.cpu[role] for r in ran) for role in ran[0].cpu}
        print(f"| {count} | {median(r.tokens_per_second for r in ran):.0f} | {cpu['head']:.2f} | {cpu[what]:.2f} | {cpu['nodes']:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--gateways", type=int, nargs="+", default=[], help="instead of workers")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shoal-") as home:
        os.environ["SHOAL_HOME"] = home  # for certificates
        asyncio.run(main(chosen.rounds, chosen.workers, chosen.gateways))
