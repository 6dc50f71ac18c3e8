"""A thousand streams whose clients leave at random moments: what they took is back afterwards."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.support.api import HI, Api, api, post, run
from tests.support.cluster import Cluster, served, until
from tests.support.descriptors import descriptors
from tests.support.engine import FakeEngine, says
from tests.support.http import COMPLETIONS, eventually

STREAMS, AT_ONCE = 1000, 50


async def visit(there: Api, rng: random.Random) -> None:
    """One client, that leaves before it has asked, in the middle of asking or of the answer, or stays to the end."""
    tokens = rng.choice((1, 10, 100))
    more = {"n": 2} if rng.random() < 0.2 else {}
    request = post({**HI, "max_tokens": tokens, "stream": rng.random() < 0.7, **more}, *_named(rng))
    try:
        wire = await there.connect()
        match rng.randrange(6):
            case 0:
                await wire.send(request[: rng.randrange(len(request))])
            case 1:
                await wire.send(request)
            case 2 | 3:
                await wire.send(request)
                await wire.reader.read(rng.randrange(1, 2000))
            case 4:
                await wire.send(request + request)
                await wire.answer()
            case _:
                await wire.send(request)
                await wire.answer()
        await asyncio.sleep(rng.random() * 0.01)
        wire.hang_up()
    finally:
        there.forget()


def _named(rng: random.Random) -> tuple[str, ...]:
    return ("/v1/chat/completions", f"X-Request-Id: id-{rng.getrandbits(64)}") if rng.random() < 0.2 else ()


async def crowd(there: Api, engine: FakeEngine, seed: int, streams: int) -> None:
    """So many visits, some at once; until nothing of them is left."""

    async def visits(worker: int) -> None:
        rng = random.Random(seed * AT_ONCE + worker)
        for _ in range(streams // AT_ONCE):
            await visit(there, rng)

    await asyncio.gather(*(visits(worker) for worker in range(AT_ONCE)))
    await there.until_open(0)
    answers = there.service.answers
    await eventually(lambda: there.service.in_flight.inside == 0 and not answers._answers)
    assert all(stream.closed for stream in engine.streams)
    assert not answers._readers and not answers._expiries and not answers._resumable
    assert not there.server.connections.waiting
    engine.streams.clear()
    engine.observed.clear()
    gc.collect()


def traced() -> int:
    """Bytes allocated, but for what coverage takes, and the table of asyncio's tasks, which shrinks only when it is written to."""
    apart = [tracemalloc.Filter(False, pattern) for pattern in ("*slipcover*", "*_weakrefset.py")]
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(apart).traces)


@pytest.mark.slow
def test_a_thousand_clients_that_leave_leave_nothing_behind() -> None:
    async def work() -> None:
        engine = FakeEngine(says("x" * 100, "y" * 100))
        engine.resume = 0.05
        async with api(engine) as there:
            await crowd(there, engine, 1, 200)  # caches, pools and compiled expressions
            tasks, files = asyncio.all_tasks(), descriptors()
            tracemalloc.start()
            try:
                await crowd(there, engine, 2, 100)
                before = traced()
                await crowd(there, engine, 3, STREAMS)
                grown = traced() - before
            finally:
                tracemalloc.stop()
            assert asyncio.all_tasks() <= tasks
            assert descriptors() <= files
            assert grown < STREAMS * 100, f"{grown} bytes"  # an answer that stayed would be several KB

    run(work, 300)


# A cluster


def leave(made: Cluster, seed: int) -> None:
    """A client of a real cluster that leaves somewhere."""
    rng = random.Random(seed)
    body = {"prompt": f"Story {seed % 7}:", "max_tokens": rng.choice((2, 60)), "temperature": 0, "stream": rng.random() < 0.8}
    request = post(body, COMPLETIONS)
    with socket.create_connection(("127.0.0.1", made.port)) as client:
        client.sendall(request[: rng.randrange(len(request))] if rng.random() < 0.2 else request)
        if rng.random() < 0.7:
            client.settimeout(rng.random())
            try:
                while client.recv(rng.randrange(1, 4000)) and rng.random() < 0.9:
                    pass
            except TimeoutError:
                pass


@pytest.mark.real
@pytest.mark.slow
def test_a_cluster_has_its_slots_blocks_and_sockets_back(tmp_path: Path) -> None:
    with served(tmp_path, 2, "--slots", "8") as made:
        whole = made.texts("A story:", 20)

        def files() -> list[int]:
            return [process.num_fds() for process in (*made.head.family(), *(p for node in made.nodes for p in node.family()))]

        def crowd(first: int, count: int) -> None:
            with ThreadPoolExecutor(12) as pool:
                list(pool.map(lambda seed: leave(made, seed), range(first, first + count)))
            made.until_idle()

        crowd(0, 20)
        made.http.close()
        made.http = type(made.http)(base_url=made.url, timeout=60, trust_env=False)
        made.until_idle()
        before, memory = files(), psutil.Process(made.head.popen.pid).memory_info().rss
        crowd(20, 80)
        until(lambda: files() == before, lambda: f"{before} files were open, then {files()}")
        grown = psutil.Process(made.head.popen.pid).memory_info().rss - memory
        assert grown < 32 << 20, f"{grown} bytes"
        assert made.texts("A story:", 20) == whole
        assert "Traceback" not in made.head.said
