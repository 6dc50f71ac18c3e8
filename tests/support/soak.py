"""Streams for as long as you like while nodes are killed and added: `python -m tests.support.soak --minutes 30`.

Every answer is compared with that of an undisturbed cluster; the memory of the head, and of nodes that live long, must stay flat.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx2 as httpx
import psutil

from tests.support.cluster import Cluster, Process, cluster, until

PROMPTS = [
    f"Write a long story about a sailor and {n} {what}, in many words." for n in (2, 3, 5) for what in ("whales", "storms", "islands")
]
FEWEST, MOST = 3, 5  # nodes


@dataclass
class Report:
    seconds: float = 0.0
    streams: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    killed: int = 0
    added: int = 0
    longest_pause: float = 0.0
    head_memory: list[int] = field(default_factory=list)
    """Resident bytes, sampled every two seconds."""

    def growth(self) -> float:
        """Of the head's memory: the last quarter's median over that of the second quarter."""
        quarter = max(len(self.head_memory) // 4, 1)
        return median(self.head_memory[-quarter:]) / median(self.head_memory[quarter : 2 * quarter] or self.head_memory)

    def __str__(self) -> str:
        return (
            f"{self.seconds / 60:.1f} min: {self.streams} streams, {len(self.wrong)} wrong, {len(self.failed)} failed; {self.killed} nodes "
            f"killed, {self.added} added; longest pause {self.longest_pause:.1f} s; head's memory {self.head_memory[0] / 2**20:.0f} to "
            f"{self.head_memory[-1] / 2**20:.0f} MiB, last quarter {self.growth():.3f} times the second"
        )


async def ask(url: str, prompt: str, tokens: int) -> tuple[str, float]:
    """The answer, and the longest time between two pieces of it. Raises httpx.HTTPError, RuntimeError for an error in the stream."""
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "temperature": 0, "stream": True}
    said, pause, last = "", 0.0, time.monotonic()
    async with (
        httpx.AsyncClient(timeout=300, trust_env=False) as http,
        http.stream("POST", f"{url}/v1/chat/completions", json=body) as response,
    ):
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                return said, pause
            if line.startswith("data: "):
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                said += event["choices"][0]["delta"].get("content", "")
                now = time.monotonic()
                pause, last = max(pause, now - last), now
    raise RuntimeError("the stream ended without its end")


class Soak:
    def __init__(self, made: Cluster, seed: int, every: float, tokens: int) -> None:
        self.report = Report()
        self._cluster, self._every, self._tokens = made, every, tokens
        self._rng, self._gaps = random.Random(seed), random.Random(seed)  # whatever the streams draw, nodes come and go at the same times
        self._nodes: list[Process] = []
        self._names = 0

    def add(self) -> None:
        self._names += 1
        self._nodes.append(self._cluster.join("--name", f"soak-{self._names}"))

    def _alive(self) -> list[Process]:
        return [node for node in self._nodes if node.popen.poll() is None]

    async def run(self, seconds: float, streams: int) -> Report:
        url = self._cluster.url
        answers = await asyncio.gather(*(ask(url, prompt, self._tokens) for prompt in PROMPTS))
        wanted = {prompt: said for prompt, (said, _) in zip(PROMPTS, answers, strict=True)}
        end = time.monotonic() + seconds
        began = time.monotonic()
        troubling = asyncio.ensure_future(self._trouble(end))
        measuring = asyncio.ensure_future(self._measure(end))
        await asyncio.gather(*(self._stream(wanted, end) for _ in range(streams)))
        await asyncio.gather(troubling, measuring)
        self.report.seconds = time.monotonic() - began
        return self.report

    async def _stream(self, wanted: dict[str, str], end: float) -> None:
        while time.monotonic() < end:
            prompt = self._rng.choice(PROMPTS)
            try:
                said, pause = await ask(self._cluster.url, prompt, self._tokens)
            except (httpx.HTTPError, RuntimeError) as error:
                self.report.failed.append(f"{type(error).__name__}: {error}")
                await asyncio.sleep(1)
                continue
            self.report.streams += 1
            self.report.longest_pause = max(self.report.longest_pause, pause)
            if said != wanted[prompt]:
                self.report.wrong.append(f"{prompt}\n  {wanted[prompt]!r}\n  {said!r}")

    async def _trouble(self, end: float) -> None:
        while True:
            await asyncio.sleep(min(self._gaps.expovariate(1 / self._every), 3 * self._every))
            if time.monotonic() > end - self._every / 2:
                return
            alive = self._alive()
            if len(alive) <= FEWEST or (len(alive) < MOST and self._rng.random() < 0.5):
                self.add()
                self.report.added += 1
            else:
                self._rng.choice(alive).signal(self._rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGINT)))
                self.report.killed += 1

    async def _measure(self, end: float) -> None:
        head = psutil.Process(self._cluster.head.popen.pid)
        while time.monotonic() < end:
            self.report.head_memory.append(head.memory_info().rss)
            await asyncio.sleep(2)


def soak(folder: Path, seconds: float, *, streams: int = 6, seed: int = 0, every: float = 20.0, tokens: int = 64) -> tuple[Report, str]:
    """The report, and what the processes said."""
    with cluster(folder) as made:
        made.start(
            "-v", "serve", "--port", str(made.port), "--control-port", str(made.control_port), "--discovery", "none",
            "--min-nodes", "4", "--spread", "--spares", "1",
        )  # fmt: skip
        soaking = Soak(made, seed, every, tokens)
        for _ in range(4):
            soaking.add()
        made.until_ready()
        report = asyncio.run(soaking.run(seconds, streams))
        until(lambda: made.metric("sequences_running") == 0, made.story)
        return report, made.story()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=20, help="seconds between kills and additions, on average")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shoal-soak-") as folder:
        report, story = soak(Path(folder), given.minutes * 60, seed=given.seed, every=given.every)
    for line in (*report.wrong, *report.failed):
        print(line)
    print(report)
    if report.wrong or report.failed or report.growth() > 1.1:
        print(story[-20000:])
        sys.exit(1)


if __name__ == "__main__":
    main()
