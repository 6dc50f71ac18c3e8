"""What an answer from the response cache takes, beside one that is computed: `python -m benchmarks.response_cache [--rounds 5]`.

A cluster of two nodes on this machine, whose head serves the API. Streams one after another: each prompt is new, then asked again. Then
hits alone, whole answers over connections that are kept, from another process. Last what the file itself takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from benchmarks.api_workers import request, spent, up
from benchmarks.report import processor
from shoal.request import FinishReason, Request, RequestId, TokenChunk
from shoal.serving.response_cache import Recording, packed, unpacked
from shoal.serving.response_store import AnswerStore

PROMPT, TOKENS = 32, 128
CLIENTS = 8
SECONDS = 5.0
ANSWERS = 5000


def body(number: int, stream: bool) -> bytes:
    prompt = [(number * 7919 + i * 104729 + 23) % 40000 for i in range(PROMPT)]
    asked = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "stream": stream, "ignore_eos": True}
    return json.dumps(asked).encode()


async def timed(port: int, number: int, found: bytes) -> tuple[float, float]:
    """Seconds to the first token and to the end. found: hit or miss."""
    began, first, answer = perf_counter(), 0.0, b""
    async for part in request(port, "POST", "/v1/completions", body(number, stream=True)):
        answer += part
        first = first or (perf_counter() - began if b"data: " in answer else 0.0)
    assert b"x-shoal-cache: " + found in answer and b"data: [DONE]" in answer, answer[:500]
    return first, perf_counter() - began


async def hits(port: int, number: int, until: float) -> int:
    """How many whole answers come over one connection until then."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    asked, count = body(number, stream=False), 0
    message = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(asked) + asked
    while perf_counter() < until:
        writer.write(message)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert b"x-shoal-cache: hit" in head, head
        await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        count += 1
    writer.close()
    return count


async def served(rounds: int) -> None:
    misses: list[tuple[float, float]] = []
    again: list[tuple[float, float]] = []
    rates: list[tuple[float, float]] = []
    with TemporaryDirectory() as folder:
        async with up("--response-cache", "256MiB", "--data", folder) as (port, head):
            for number in range(rounds):
                misses.append(await timed(port, number, b"miss"))
                again.append(await timed(port, number, b"hit"))
            async for _ in request(port, "POST", "/v1/completions", body(0, stream=False)):
                pass
            for _ in range(rounds):
                before, began = spent([head]), perf_counter()
                count = sum(await asyncio.gather(*(hits(port, i % rounds, began + SECONDS) for i in range(CLIENTS))))
                rates.append((count / (perf_counter() - began), (spent([head]) - before) / count))
    print("| | first token, ms | whole stream, ms |\n|---|---|---|")
    for name, ran in (("computed", misses), ("a hit", again)):
        print(f"| {name} | {median(first for first, _ in ran) * 1e3:.1f} | {median(whole for _, whole in ran) * 1e3:.1f} |")
    rate, cpu = (median(values) for values in zip(*rates, strict=True))
    print(f"\n{rate:.0f} hits a second over {CLIENTS} connections, {cpu * 1e3:.2f} ms of processor each in the head")


def stored() -> None:
    asked = Request(RequestId("a-0"), [*range(PROMPT)], TOKENS)
    recording = Recording(asked)
    for i in range(TOKENS):
        recording.came(TokenChunk(asked.id, 0, 1000 + i, finish=FinishReason.LENGTH if i == TOKENS - 1 else None))
    keys = [secrets.token_bytes(32) for _ in range(ANSWERS)]
    with TemporaryDirectory() as folder:
        store = AnswerStore(Path(folder), 1 << 30, 3600.0)
        puts: list[float] = []
        gets: list[float] = []
        for key in keys:
            began = perf_counter()
            store.put(key, packed([recording]))
            puts.append(perf_counter() - began)
        for key in keys:
            began = perf_counter()
            found = store.get(key, 3600.0)
            assert found is not None and len(unpacked(found.answer, [asked])[0]) == TOKENS
            gets.append(perf_counter() - began)
        store.close()
    print(f"\nin a file of {ANSWERS} answers: {median(gets) * 1e6:.0f} µs to find one and read it, {median(puts) * 1e6:.0f} µs to keep one")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(
        f"{processor()}, {os.cpu_count()} processors: prompts of {PROMPT} tokens, answers of {TOKENS}, medians of {given.rounds} rounds\n"
    )
    asyncio.run(served(given.rounds))
    stored()
