"""What traces of requests cost: `python -m benchmarks.traces`.

Two clusters of two nodes each take turns, one of which traces a share of its requests. A receiver in this process takes the spans and
drops them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator
from statistics import median

from benchmarks.api_workers import STREAMS, TOKENS, Round, measure, up
from benchmarks.report import processor


class Receiver:
    """Answers every request with 200, and counts the bytes."""

    def __init__(self) -> None:
        self.received = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                self.received += length
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n")
        writer.close()


@contextlib.asynccontextmanager
async def receiver() -> AsyncIterator[tuple[Receiver, str]]:
    made = Receiver()
    async with await asyncio.start_server(made.serve, "127.0.0.1", 0) as server:
        yield made, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def main(rounds: int, share: float, streams: list[int]) -> None:
    traced, off = f"{share:.0%} traced", "off"
    async with receiver() as (received, where), up() as plain, up("--traces", where, "--trace-sample", str(share)) as tracing:
        clusters = {off: plain, traced: tracing}
        print(f"{processor()}, 2 nodes, {TOKENS} tokens, medians of {rounds} rounds\n")
        print("| streams | traces | tokens/s | of those without | head, ms of processor per token |\n|---|---|---|---|---|")
        for count in streams:
            found: dict[str, list[Round]] = {name: [] for name in clusters}
            for number in range(rounds):
                turns = [*clusters.items()]
                for name, cluster in turns if number % 2 else turns[::-1]:
                    found[name].append(await measure(*cluster, number * 100 + count, count))
            base = median(r.tokens_per_second for r in found[off])
            for name, ran in found.items():
                speed, cpu = median(r.tokens_per_second for r in ran), median(r.cpu["head"] for r in ran)
                print(f"| {count} | {name} | {speed:.1f} | {speed / base:.1%} | {cpu:.3f} |")
    print(f"\n{received.received} bytes of spans were received")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, STREAMS])
    chosen = parser.parse_args()
    asyncio.run(main(chosen.rounds, chosen.share, chosen.streams))
